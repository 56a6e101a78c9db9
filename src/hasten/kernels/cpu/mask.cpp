// Logits of tokens that a grammar forbids become -inf. Nothing is read but the mask: what stays legal is not touched.
#include "simd.h"
#include "team.h"

namespace {

constexpr int WORD = 32;  // tokens of a word of the mask

struct ApplyMask {  // as native.py packs it
    int64_t is_bf16;
    void *logits;
    const int32_t *mask;
    const int64_t *rows;
    int64_t count, total, n, stride, mask_stride;  // total: rows of logits
};

template <class E> E never() {
    E value;
    narrow(-INF, &value);
    return value;
}

#if defined(__AVX512F__)
inline void forbid(float *p, uint32_t tokens) {
    _mm512_mask_storeu_ps(p, __mmask16(tokens), set1(-INF));
    _mm512_mask_storeu_ps(p + 16, __mmask16(tokens >> 16), set1(-INF));
}
inline void forbid(bf16 *p, uint32_t tokens) {
    _mm512_mask_storeu_epi16(p, tokens, _mm512_set1_epi16(int16_t(never<bf16>().bits)));
}
#else
template <class E> inline void forbid(E *p, uint32_t tokens) {
    for (; tokens; tokens &= tokens - 1) p[__builtin_ctz(tokens)] = never<E>();
}
#endif

template <class E> void mask_row(E *row, const uint32_t *words, int64_t n) {
    int64_t i = 0;
    for (; i + WORD <= n; i += WORD) {
        uint32_t legal = *words++;
        if (legal == 0)
            std::fill(row + i, row + i + WORD, never<E>());
        else if (legal != ~0u)
            forbid(row + i, ~legal);
    }
    for (int k = 0; i + k < n; k++)  // bits beyond the vocabulary mean nothing
        if (!(*words >> k & 1)) row[i + k] = never<E>();
}

template <class E> void apply(const ApplyMask &a) {
    bool worth = a.count > 1 && a.count * a.n > (1 << 19);
    gather(worth, a.count, [&](Team &team) {
        team.share(a.count, worth, [&](int64_t r) {
            mask_row((E *)a.logits + a.rows[r] * a.stride, (const uint32_t *)a.mask + r * a.mask_stride, a.n);
        });
    });
}

}  // namespace

// Returns 0, or 1 for a row out of range; then nothing was written.
extern "C" int64_t hasten_apply_mask(const ApplyMask *a) {
    for (int64_t r = 0; r < a->count; r++)
        if (a->rows[r] < 0 || a->rows[r] >= a->total) return 1;
    a->is_bf16 ? apply<bf16>(*a) : apply<float>(*a);
    return 0;
}
