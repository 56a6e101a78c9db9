// The step of a scalar product along two rows: the elements that one vector instruction multiplies.
#pragma once

#include "simd.h"

namespace {

template <class E> constexpr int step_of() { return W; }
// What of the elements of a step multiplies at once: all, or one of its halves.
template <class E> constexpr int parts_of() { return 1; }
template <class E> inline vf part(const E *a, int) { return load(a); }
template <class E> inline vf step(vf acc, const E *a, const E *b) { return fma(load(a), load(b), acc); }
template <class E> inline vf last_step(vf acc, const E *a, const E *b, int n) { return fma(load_n(a, n), load_n(b, n), acc); }
#if defined(HASTEN_DOT_BF16)
template <> constexpr int step_of<bf16>() { return 2 * W; }
inline vf step(vf acc, const bf16 *a, const bf16 *b) {
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_loadu_si512(a), (__m512bh)_mm512_loadu_si512(b));
}
inline vf last_step(vf acc, const bf16 *a, const bf16 *b, int n) {
    __mmask32 m = (1u << n) - 1;
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_maskz_loadu_epi16(m, a), (__m512bh)_mm512_maskz_loadu_epi16(m, b));
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
// A lane of 32 bits holds two bf16: each is a float once the other's bits are gone, one instruction for eight of them.
template <> constexpr int step_of<bf16>() { return 2 * W; }
template <> constexpr int parts_of<bf16>() { return 2; }
template <> inline vf part(const bf16 *a, int which) {
    ints x = load_ints((const int32_t *)a);
    return which ? upper_bf16(x) : lower_bf16(x);
}
inline vf step(vf acc, const bf16 *a, const bf16 *b) {
    ints x = load_ints((const int32_t *)a), y = load_ints((const int32_t *)b);
    return fma(upper_bf16(x), upper_bf16(y), fma(lower_bf16(x), lower_bf16(y), acc));
}
inline vf last_step(vf acc, const bf16 *a, const bf16 *b, int n) {
    bf16 all[2][2 * W] = {};
    std::memcpy(all[0], a, n * sizeof(bf16)), std::memcpy(all[1], b, n * sizeof(bf16));
    return step(acc, all[0], all[1]);
}
#endif

}  // namespace
