// float16, in which scales are kept.
#pragma once

#include <cmath>
#include <cstdint>

#include "simd.h"

namespace {

#if defined(__F16C__)
inline float from_half(uint16_t h) { return _cvtsh_ss(h); }
#else
inline float from_half(uint16_t h) {
    int exponent = h >> 10 & 31, fraction = h & 1023;
    float size = exponent ? std::ldexp(float(1024 + fraction), exponent - 25) : std::ldexp(float(fraction), -24);
    return h >> 15 ? -size : size;
}
#endif

#if defined(__AVX512F__)
inline vf load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
#elif defined(__AVX2__)
inline vf load_half(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
#else
inline vf load_half(const uint16_t *p) { return vf{from_half(p[0]), from_half(p[1]), from_half(p[2]), from_half(p[3])}; }
#endif

}  // namespace
