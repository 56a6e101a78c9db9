// Vectors of floats for the instruction set this file is compiled for, so that each kernel is written once.
//
// `vf` is W float lanes. Arithmetic uses the compiler's vector operators; the functions here are what operators cannot say.
// Everything has internal linkage: several builds of the same kernels may be loaded into one process.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512BF16__)
#define HASTEN_DOT_BF16 1  // pairs of bf16 multiplied and accumulated in float32 by one instruction
#endif
#if defined(__AVX512VNNI__)
#define HASTEN_DOT_BYTES 1  // the same of four bytes, in whole numbers
#endif

namespace {

struct bf16 {
    uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline void narrow(float x, float *to) { *to = x; }
inline void narrow(float x, bf16 *to) {  // round to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    to->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

constexpr float INF = std::numeric_limits<float>::infinity();

#if defined(__AVX512F__)
constexpr int W = 16;
using vf = __m512;
using vi = __m512i;
#elif defined(__AVX2__)
constexpr int W = 8;
using vf = __m256;
using vi = __m256i;
#else
constexpr int W = 4;
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
#endif
typedef int32_t ints __attribute__((vector_size(4 * W)));  // 32-bit lanes, for the compiler's operators

inline vf set1(float x) { return vf{} + x; }
inline vf load(const float *p) {
    vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float *p, vf v) { std::memcpy(p, &v, sizeof v); }
inline ints load_ints(const int32_t *p) {
    ints v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline vf bits_to_floats(ints v) {
    vf f;
    std::memcpy(&f, &v, sizeof f);
    return f;
}
inline ints floats_to_bits(vf v) {
    ints i;
    std::memcpy(&i, &v, sizeof i);
    return i;
}

// Of two bf16 in each lane, the first and the second.
inline vf lower_bf16(ints x) { return bits_to_floats(x << 16); }
inline vf upper_bf16(ints x) { return bits_to_floats(x & int32_t(0xffff0000)); }

// Comparisons give a `mask`, one bit or one lane of ones for each lane.
#if defined(__AVX512F__)
using mask = __mmask16;
inline mask less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline mask equal(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline mask less(ints a, ints b) { return _mm512_cmplt_epi32_mask((vi)a, (vi)b); }
inline vf choose(mask m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }
inline uint32_t mask_bits(mask m) { return m; }
#else
using mask = ints;
inline mask less(vf a, vf b) { return (mask)(a < b); }
inline mask equal(vf a, vf b) { return (mask)(a == b); }
inline mask less(ints a, ints b) { return a < b; }
inline vf choose(mask m, vf yes, vf no) { return bits_to_floats((m & floats_to_bits(yes)) | (~m & floats_to_bits(no))); }
inline uint32_t mask_bits(mask m) {
#if defined(__AVX2__)
    return uint32_t(_mm256_movemask_ps((__m256)m));
#else
    uint32_t bits = 0;
    for (int i = 0; i < W; i++) bits |= uint32_t(m[i] & 1) << i;
    return bits;
#endif
}
#endif

#if defined(__AVX512F__)

inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
inline vf load(const bf16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
inline __m256i to_bf16(vf v) {
#if defined(HASTEN_DOT_BF16)
    return (__m256i)_mm512_cvtneps_pbh(v);
#else
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_set1_epi32(up, nan, 0x7fc0));
#endif
}
inline void store(bf16 *p, vf v) { _mm256_storeu_si256((__m256i *)p, to_bf16(v)); }
inline vf load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
inline vf load_n(const bf16 *p, int n) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p)), 16));
}
inline void store_n(float *p, vf v, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v); }
inline void store_n(bf16 *p, vf v, int n) { _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), to_bf16(v)); }
inline vf round_to_int(vf v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

#else

#if defined(__AVX2__)
inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
inline vf load(const bf16 *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
inline vf round_to_int(vf v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline ints to_ints(vf v) { return (ints)_mm256_cvtps_epi32(v); }
inline void store(bf16 *p, vf v) {
    ints bits = floats_to_bits(v);
    ints up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 & 0xffff;
    up = floats_to_bits(choose(equal(v, v), bits_to_floats(up), bits_to_floats(ints{} + 0x7fc0)));
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)up, (__m256i)up), 0x08);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(packed));
}
#else
inline vf fma(vf a, vf b, vf c) { return a * b + c; }
inline vf vmax(vf a, vf b) { return choose(less(b, a), a, b); }
inline vf load(const bf16 *p) { return vf{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}; }
inline vf round_to_int(vf v) {  // for |v| < 2^22, which is all that exp2 asks for
    const float magic = 12582912.0f;
    return (v + magic) - magic;
}
inline ints to_ints(vf v) { return ints{int32_t(v[0]), int32_t(v[1]), int32_t(v[2]), int32_t(v[3])}; }
inline void store(bf16 *p, vf v) {
    for (int i = 0; i < W; i++) narrow(v[i], p + i);
}
#endif

template <class E> inline vf load_n(const E *p, int n) {
    E all[W] = {};
    std::memcpy(all, p, n * sizeof(E));
    return load(all);
}
template <class E> inline void store_n(E *p, vf v, int n) {
    E all[W];
    store(all, v);
    std::memcpy(p, all, n * sizeof(E));
}

#endif

// Sums in a fixed order: halves onto halves.
inline float sum_lanes(vf v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    __m256 y = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
#else
    __m256 y = v;
#endif
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
#else
    return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}
#if defined(__AVX512F__)
// The same sums for many vectors at once. `fold` leaves vector i in quarter i of its result; `sum_quarters` adds up the lanes of
// each quarter: lane 4 i + j is the sum of what was folded as vector i into its argument j.
inline vf fold(vf a, vf b, vf c, vf d) {
    vf ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    vf cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}
inline vf halve_quarters(vf p, vf q) {
    return _mm512_add_ps((vf)_mm512_unpacklo_pd((__m512d)p, (__m512d)q), (vf)_mm512_unpackhi_pd((__m512d)p, (__m512d)q));
}
inline vf sum_quarters(vf p, vf q, vf r, vf s) {
    vf pq = halve_quarters(p, q), rs = halve_quarters(r, s);
    return _mm512_add_ps(_mm512_shuffle_ps(pq, rs, 0x88), _mm512_shuffle_ps(pq, rs, 0xdd));
}
// Lane 4 i + j is the sum of what was folded as vector j into parts[i].
inline vf sum_folded(const vf (&parts)[4]) {
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    return _mm512_permutexvar_ps(order, sum_quarters(parts[0], parts[1], parts[2], parts[3]));
}
#elif defined(__AVX2__)
// a0 b0 a1 b1 .., of all their lanes.
inline void interleave(vf &a, vf &b) {
    vf low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    a = _mm256_permute2f128_ps(low, high, 0x20), b = _mm256_permute2f128_ps(low, high, 0x31);
}
// The same sums, lane i of each half a sum of vector i.
inline vf fold(vf a, vf b, vf c, vf d) { return _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d)); }
inline vf sum_folded(const vf (&parts)[2]) {
    return _mm256_add_ps(_mm256_permute2f128_ps(parts[0], parts[1], 0x20), _mm256_permute2f128_ps(parts[0], parts[1], 0x31));
}
#endif
inline float max_lanes(vf v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    __m256 y = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
#else
    __m256 y = v;
#endif
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
#else
    float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
#endif
}

#if defined(__AVX2__)
// Of numbers of 16 bits, two in each lane: sums of the products of both, and the upper bytes of both, unsigned.
#if defined(__AVX512F__)
inline ints pairs(ints a, ints b) { return (ints)_mm512_madd_epi16((vi)a, (vi)b); }
inline ints high_unsigned(ints v) { return (ints)_mm512_srli_epi16((vi)v, 8); }
#else
inline ints pairs(ints a, ints b) { return (ints)_mm256_madd_epi16((vi)a, (vi)b); }
inline ints high_unsigned(ints v) { return (ints)_mm256_srli_epi16((vi)v, 8); }
#endif
#endif

// 2^x to about one unit in the last place for x <= 127; exactly 1 at 0 and exactly 0 at -inf.
inline vf exp2v(vf x) {
    vf clamped = vmax(x, set1(W == 16 ? -200.0f : -126.0f));
    vf whole = round_to_int(clamped);
    vf r = clamped - whole;
    vf y = set1(1.5403530e-4f);
    y = fma(y, r, set1(1.3333558e-3f));
    y = fma(y, r, set1(9.6181291e-3f));
    y = fma(y, r, set1(5.5504109e-2f));
    y = fma(y, r, set1(2.4022651e-1f));
    y = fma(y, r, set1(6.9314718e-1f));
    y = fma(y, r, set1(1.0f));
#if defined(__AVX512F__)
    return _mm512_scalef_ps(y, whole);  // 0 where too small
#else
    vf power = bits_to_floats(floats_to_bits(y) + (to_ints(whole) << 23));  // y in [0.7, 1.5): no overflow of the exponent
    return choose(less(x, set1(-126.0f)), vf{}, power);
#endif
}
inline vf expv(vf x) { return exp2v(x * 1.44269504f); }

}  // namespace
