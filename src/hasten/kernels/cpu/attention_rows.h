// The rows of a job while keys are still to come: outputs not yet divided, the largest score and the mass of each.
#pragma once

#include "attention_view.h"

namespace {

struct Partial {
    float *o, *m, *l;  // [rows][width], [rows], [rows]
    int width;

    void clear(int rows) {
        std::fill(m, m + rows, -INF);
        std::fill(l, l + rows, 0.0f);
        std::fill(o, o + size_t(rows) * width, 0.0f);
    }

    // Factors that turn (these rows, a new tile) into the merged rows; updates maxima and masses.
    void merge(int row, int count, const float *top, const float *mass, float *keep, float *add) {
        for (int i = 0; i < count; i += W) {
            int n = std::min(W, count - i);
            vf before = load_n(m + row + i, n), here = load_n(top + i, n), highest = vmax(before, here);
            vf base = choose(equal(highest, set1(-INF)), vf{}, highest);  // neither holds a key: both factors are 0
            vf old_share = exp2v(before - base), new_share = exp2v(here - base);
            store_n(keep + i, old_share, n), store_n(add + i, new_share, n);
            store_n(l + row + i, fma(load_n(l + row + i, n), old_share, load_n(mass + i, n) * new_share), n);
            store_n(m + row + i, highest, n);
        }
    }

    // Writes a job's rows to the call's outputs, which are numbers of type E.
    template <class E> void finish(const Call &call, const Job &job) const {
        int group = call.group(), rows = (job.to - job.from) * group, dim = int(call.dim);
        for (int r = 0; r < rows; r++) {
            int token = job.token(r / group), head = job.head * group + r % group;
            E *to = (E *)call.out + token * call.out_stride + head * call.dim;
            vf mass = set1(l[r] > 0 ? l[r] : 1.0f);
            int d = 0;
            for (; d + W <= dim; d += W) store(to + d, load(o + size_t(r) * width + d) / mass);
            if (d < dim) store_n(to + d, load(o + size_t(r) * width + d) / mass, dim - d);
            if (call.lse) call.lse[int64_t(token) * call.heads + head] = l[r] > 0 ? LN2 * (m[r] + std::log2(l[r])) : -INF;
        }
    }
    void finish(const Call &call, const Job &job) const { call.is_bf16 ? finish<bf16>(call, job) : finish<float>(call, job); }
};

}  // namespace
