// Rows of values into the cache: rotated to their positions, rounded to the cache's type, each head where it belongs. Compiled once
// for each instruction set.
#pragma once

#include <cstring>

#include "api.h"

namespace VARIANT {

inline uint16_t bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16, none = bits >> 16 | 64;
    return uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? none : rounded);  // what is no number stays none
}

inline uint16_t float16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return uint16_t(sign | 0x7e00u);
    if (size >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // beyond the greatest, halves rounded up
    if (size < 0x38800000u) {  // smaller than the least normal one: the adder does the rounding
        float shifted;
        std::memcpy(&shifted, &size, 4);
        shifted += 0.5f;
        uint32_t out;
        std::memcpy(&out, &shifted, 4);
        return uint16_t(sign | (out - 0x3f000000u));
    }
    return uint16_t(sign | ((size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13));
}

inline float same(float value) { return value; }

constexpr int64_t MOST_DIM = 1024;

// 0 or a Fault.
inline int64_t fits(const Place &a) {
    if (a.rows < 0 || a.heads <= 0 || a.dim <= 0 || a.dim > MOST_DIM || a.rotary < 0 || a.rotary > a.dim || a.rotary % 2 || a.kind < 0 ||
        a.kind > 2)
        return BAD_ARGUMENT;
    for (int64_t row = 0; row < a.rows; ++row) {
        if (a.cos_sin && (a.at[row] < 0 || a.at[row] >= a.positions)) return BAD_ARGUMENT;
        if (a.offsets[row] < 0 || a.offsets[row] + (a.heads - 1) * a.head_stride + a.dim > a.elements) return BAD_ARGUMENT;
    }
    return 0;
}

template <class T, T (*round_to)(float)> void place_row(const Place &a, int64_t row, const float *values) {
    alignas(64) float turned[MOST_DIM];
    const int64_t half = a.rotary / 2;
    const float *cosine = a.cos_sin ? a.cos_sin + int64_t(a.at[row]) * a.rotary : nullptr, *sine = cosine + half;
    T *out = static_cast<T *>(a.out) + a.offsets[row];
    for (int64_t head = 0; head < a.heads; ++head, values += a.dim, out += a.head_stride) {
        const float *from = values;
        if (cosine) {
            for (int64_t i = 0; i < half; ++i) {
                turned[i] = values[i] * cosine[i] - values[half + i] * sine[i];
                turned[half + i] = values[half + i] * cosine[i] + values[i] * sine[i];
            }
            for (int64_t i = a.rotary; i < a.dim; ++i) turned[i] = values[i];
            from = turned;
        }
        for (int64_t i = 0; i < a.dim; ++i) out[i] = round_to(from[i]);
    }
}

// Row `row` of those that `a` places. `values` [heads * dim].
inline void place_row(const Place &a, int64_t row, const float *values) {
    if (a.kind == 0) place_row<float, same>(a, row, values);
    else if (a.kind == 1) place_row<uint16_t, bfloat16>(a, row, values);
    else place_row<uint16_t, float16>(a, row, values);
}

}  // namespace VARIANT
