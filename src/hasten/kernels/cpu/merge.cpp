// Exact merging of attention results over disjoint sets of keys.
#include <algorithm>

#include "scratch.h"
#include "simd.h"
#include "team.h"

namespace {

struct Merge {  // as native.py packs it
    int64_t is_bf16;
    const void *outs;
    const float *lses;
    void *out;
    float *lse;
    int64_t parts, rows, dim;
};
thread_local Scratch kept_shares;

template <class E> void merge_rows(const Merge &a, int64_t from, int64_t to) {
    for (int64_t r = from; r < to; r++) {
        float *shares = (float *)kept_shares.take(a.parts * sizeof(float)), top = -INF, sum = 0;
        for (int64_t p = 0; p < a.parts; p++) top = std::max(top, a.lses[p * a.rows + r]);
        for (int64_t p = 0; p < a.parts; p++) {
            shares[p] = top > -INF ? std::exp(a.lses[p * a.rows + r] - top) : 0;
            sum += shares[p];
        }
        a.lse[r] = top > -INF ? top + std::log(sum) : -INF;
        for (int64_t d = 0; d < a.dim; d += W) {
            int n = int(std::min<int64_t>(W, a.dim - d));
            vf acc = {};
            for (int64_t p = 0; p < a.parts; p++)
                if (shares[p] > 0)  // a part without keys may hold anything, NaN too
                    acc = fma(load_n((const E *)a.outs + (p * a.rows + r) * a.dim + d, n), set1(shares[p] / sum), acc);
            store_n((E *)a.out + r * a.dim + d, acc, n);
        }
    }
}

}  // namespace

extern "C" void hasten_merge(const Merge *a) {
    gather(a->parts * a->rows * a->dim > 16384, a->rows, [&](Team &team) {
        team.share_rows(a->rows, true, [&](int64_t from, int64_t to) {
            a->is_bf16 ? merge_rows<bf16>(*a, from, to) : merge_rows<float>(*a, from, to);
        });
    });
}
