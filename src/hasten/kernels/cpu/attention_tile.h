// One tile of attention: keys and values gathered from their slots into packed panels, and the two small matrix products over
// them. Every query row goes through the same arithmetic whether it is a decoded token or part of a prompt: a chain of
// multiply-adds over the head dimension for each score, and over the tile's entries for each output, one accumulator each.
// So a row's bits do not depend on which rows share the panels, and packing costs a decoded token less than its reads of memory.
#pragma once

#include "simd.h"

namespace {

constexpr int TILE = 256;                 // view entries whose scores are held at once
constexpr int MR = 6;                     // query rows of a register block
constexpr int NV = W == 16 ? 4 : 2;       // vectors of a panel: MR * NV accumulators fill the registers
constexpr int PW = NV * W;                // lanes of a panel: keys while scoring, output dimensions while summing values
constexpr int PANELS = TILE / PW;

// How two packed operands are multiplied. A word is 32 bits: one float, or two bf16 of neighbouring steps.
struct InFloat {
    static constexpr int STEP = 1;
    static vf dot(vf acc, ints a, ints b) { return fma(bits_to_floats(a), bits_to_floats(b), acc); }
};
#if defined(HASTEN_DOT_BF16)
struct InBf16 {
    static constexpr int STEP = 2;
    static vf dot(vf acc, ints a, ints b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
};
template <class E> struct ArithmeticOf { using type = InFloat; };
template <> struct ArithmeticOf<bf16> { using type = InBf16; };
#else
template <class E> struct ArithmeticOf { using type = InFloat; };
#endif

// acc[r][v] += a[r] . b[v] over `steps` words. a: word (r, s) at r * ROW + s * ACROSS; b: [steps][PW].
template <class A, int M, int N, int ROW, int ACROSS>
inline __attribute__((always_inline)) void multiply(const int32_t *a, const int32_t *b, int steps, vf (&acc)[M][N]) {
    for (int r = 0; r < M; r++)
        for (int v = 0; v < N; v++) acc[r][v] = vf{};
#pragma GCC unroll 2
    for (int s = 0; s < steps; s++) {
        ints lanes[N];
        for (int v = 0; v < N; v++) lanes[v] = load_ints(b + s * PW + v * W);
        for (int r = 0; r < M; r++) {
            ints one = ints{} + a[r * ROW + s * ACROSS];
            for (int v = 0; v < N; v++) acc[r][v] = A::dot(acc[r][v], one, lanes[v]);
        }
    }
}

// Transposes W rows of W words in registers.
inline void transpose(ints (&x)[W]) {
#if defined(__AVX512F__)
    __m512i *r = (__m512i *)x, t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int half = 0; half < 16; half += 8)
        for (int i = half; i < half + 4; i++) {
            t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
            t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
#else
    alignas(64) int32_t words[W][W];  // compilers turn this into shuffles well enough for these widths
    for (int i = 0; i < W; i++) std::memcpy(words[i], &x[i], sizeof x[i]);
    for (int i = 0; i < W; i++)
        for (int j = 0; j < i; j++) {
            int32_t swap = words[i][j];
            words[i][j] = words[j][i], words[j][i] = swap;
        }
    for (int i = 0; i < W; i++) x[i] = load_ints(words[i]);
#endif
}

// W words of a row from word s on, fewer (the rest zero) at the end of the row.
template <class A> inline ints words_of(const float *row, int s, int n) { return floats_to_bits(n >= W ? load(row + s) : load_n(row + s, n)); }
template <class A> inline ints words_of(const bf16 *row, int s, int n) {
    if (A::STEP == 1) return floats_to_bits(n >= W ? load(row + s) : load_n(row + s, n));
#if defined(HASTEN_DOT_BF16)
    return (ints)_mm512_maskz_loadu_epi32(n >= W ? 0xffff : __mmask16((1u << n) - 1), row + 2 * s);
#endif
}

// Keys `first .. first + PW` of a tile of n -> packed [dim / STEP][PW]; keys past n become zeros.
template <class A, class E> void pack_keys(const E *cache, const int64_t *offset, int first, int n, int dim, int32_t *packed) {
    int words = dim / A::STEP;
    for (int key = 0; key < PW; key += W) {
        const E *rows[W];
        int present = n - first - key;
        for (int i = 0; i < W && i < present; i++) rows[i] = cache + offset[first + key + i];
        for (int s = 0; s < words; s += W) {
            ints x[W];
            if (present >= W) {
                for (int i = 0; i < W; i++) x[i] = words_of<A>(rows[i], s, words - s);
            } else {
                for (int i = 0; i < W; i++) x[i] = i < present ? words_of<A>(rows[i], s, words - s) : ints{};
            }
            transpose(x);
            int count = words - s < W ? words - s : W;
            for (int i = 0; i < count; i++) std::memcpy(packed + (s + i) * PW + key, &x[i], sizeof x[i]);
        }
    }
}

// Values of a tile's entries in [from, to) -> packed [panel of output dimensions][TILE / STEP][PW]; entries past n become zeros.
// `from` and `to` are multiples of STEP.
template <class A, class E>
void pack_values(const E *cache, const int64_t *offset, int from, int to, int n, int dim, int32_t *packed) {
    constexpr int SIZE = TILE / A::STEP * PW;
    for (int e = from; e < to; e += A::STEP) {
        int32_t *step = packed + e / A::STEP * PW;
#if defined(HASTEN_DOT_BF16)
        if (A::STEP == 2) {
            const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                                 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
            const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
            const E *one = cache + offset[e], *two = cache + offset[e + 1 < n ? e + 1 : e];
            for (int d = 0; d < dim; d += 2 * W) {
                __mmask32 wanted = dim - d >= 2 * W ? ~0u : (1u << (dim - d)) - 1;
                __m512i a = e < n ? _mm512_maskz_loadu_epi16(wanted, one + d) : __m512i{};
                __m512i b = e + 1 < n ? _mm512_maskz_loadu_epi16(wanted, two + d) : __m512i{};
                int32_t *to_lanes = step + d / PW * SIZE + d % PW;
                _mm512_storeu_si512(to_lanes, _mm512_permutex2var_epi16(a, low, b));
                _mm512_storeu_si512(to_lanes + W, _mm512_permutex2var_epi16(a, high, b));
            }
            continue;
        }
#endif
        const E *row = cache + offset[e < n ? e : 0];
        for (int d = 0; d < dim; d += W) {
            vf v = e >= n ? vf{} : dim - d >= W ? load(row + d) : load_n(row + d, dim - d);
            store((float *)step + d / PW * SIZE + d % PW, v);
        }
    }
}

// One row's probabilities -> packed words, [TILE / STEP]; entries [from, to), multiples of PW.
template <class A> inline void pack_probabilities(const float *p, int from, int to, int32_t *packed) {
#if defined(HASTEN_DOT_BF16)
    if (A::STEP == 2) {
        for (int e = from; e < to; e += 2 * W)
            _mm512_storeu_si512(packed + e / 2, (__m512i)_mm512_cvtne2ps_pbh(load(p + e + W), load(p + e)));
        return;
    }
#endif
    std::memcpy(packed + from, p + from, (to - from) * sizeof(float));
}

}  // namespace
