// Exact merging of attention results over disjoint sets of keys.
#include <algorithm>

#include "simd.h"

namespace {

template <class E>
void merge(const E *outs, const float *lses, E *out, float *lse, int64_t parts, int64_t rows, int64_t dim) {
#pragma omp parallel for schedule(static) if (parts * rows * dim > 16384)
    for (int64_t r = 0; r < rows; r++) {
        float top = -INF, sum = 0;
        for (int64_t p = 0; p < parts; p++) top = std::max(top, lses[p * rows + r]);
        if (top > -INF)
            for (int64_t p = 0; p < parts; p++) sum += std::exp(lses[p * rows + r] - top);
        lse[r] = top > -INF ? top + std::log(sum) : -INF;
        for (int64_t d = 0; d < dim; d += W) {
            int n = int(std::min<int64_t>(W, dim - d));
            vf acc = {};
            for (int64_t p = 0; p < parts; p++) {
                // A part without keys may hold anything, NaN too.
                float share = top > -INF ? std::exp(lses[p * rows + r] - top) / sum : 0;
                if (share > 0) acc = fma(load_n(outs + (p * rows + r) * dim + d, n), set1(share), acc);
            }
            store_n(out + r * dim + d, acc, n);
        }
    }
}

}  // namespace

extern "C" void hasten_merge(int is_bf16, const void *outs, const float *lses, void *out, float *lse, int64_t parts, int64_t rows,
                             int64_t dim) {
    if (is_bf16)
        merge((const bf16 *)outs, lses, (bf16 *)out, lse, parts, rows, dim);
    else
        merge((const float *)outs, lses, (float *)out, lse, parts, rows, dim);
}
