// Keys and values of 8 and 4 bits: how their codes lie in the cache, and what a store writes there (kernels/coded.py).
//
// The codes of 16 slots of one head lie together, a strip, in the order in which products of bytes want them: keys in words of 4
// dimensions, a lane a slot; values in words of 4 slots, a lane a dimension. Of 4 bits two words share their bytes, the first in
// the low halves. Each strip has its scales beside it, a lane a slot.
#pragma once

#include <algorithm>

#include "arguments.h"

namespace {

constexpr int STRIP = 16;
constexpr int GROUP = 32;           // dimensions that share a scale of 4 bits; of 8 bits all of a head do
constexpr float LEAST = 7.8886e-31f;  // 2^-100: scales below it are taken for 0, lest their inverse overflow

template <int BITS> inline int groups_of(int dim) { return BITS == 8 ? 1 : dim / GROUP; }
template <int BITS> inline int64_t strip_bytes(int64_t dim) { return STRIP * dim * BITS / 8; }
template <int BITS> inline int64_t strip_params(int64_t dim) { return STRIP * (BITS == 8 ? 2 : dim / GROUP); }

// Of a key and a value with their scales.
template <int BITS> inline int64_t coded_bytes(int64_t dim) { return 2 * (strip_bytes<BITS>(dim) + 2 * strip_params<BITS>(dim)) / STRIP; }

inline vf to_floats(ints x) { return __builtin_convertvector(x, vf); }
inline ints nearest(vf x) {
#if defined(__AVX512F__)
    return (ints)_mm512_cvtps_epi32(x);
#else
    return to_ints(round_to_int(x));
#endif
}

// value = scale * code + low, of W slots of a strip from `lane` on, in group g.
template <int BITS> inline void scale_and_low(const uint16_t *params, int g, int lane, vf &scale, vf &low) {
    if (BITS == 8) {
        scale = load((const bf16 *)params + lane), low = load((const bf16 *)params + STRIP + lane);
    } else {  // 12 bits of a positive float, 4 bits of the code that means zero
        ints x = floats_to_bits(load((const bf16 *)params + g * STRIP + lane));
        scale = bits_to_floats(x >> 1 & 0x7ff80000);
        low = vf{} - scale * to_floats(x >> 16 & 15);
    }
}

inline vf vmin(vf a, vf b) { return vf{} - vmax(vf{} - a, vf{} - b); }
inline float min_lanes(vf v) { return -max_lanes(vf{} - v); }
inline float as_bf16(float x, uint16_t &bits) {
    bf16 kept;
    narrow(x, &kept);
    bits = kept.bits;
    return widen(kept);
}

// The codes of x [dim] and its params: scale and low in bf16, or a word a group.
template <int BITS, class E> void encode(const E *x, int dim, uint8_t *codes, uint16_t *params) {
    const int group = BITS == 8 ? dim : GROUP;
    for (int g = 0; g < dim; g += group) {
        vf least = load(x + g), most = least;
        for (int i = W; i < group; i += W) least = vmin(least, load(x + g + i)), most = vmax(most, load(x + g + i));
        float low = min_lanes(least), high = max_lanes(most), scale, inverse;
        ints zero = {};
        if (BITS == 8) {
            low = as_bf16(low, params[1]);
            // A little wider than the range, lest rounding the scale cut its end off.
            scale = as_bf16(std::max(high - low, 0.0f) * float(257.0 / 256 / 255), params[0]);
            if (scale < LEAST) scale = 0, params[0] = 0;
            inverse = scale > 0 ? 1.0f / scale : 0.0f;
        } else {
            low = std::min(low, 0.0f), high = std::max(high, 0.0f);
            float step = (high - low) / 15.0f;
            uint32_t bits;
            std::memcpy(&bits, &step, 4);
            bits = (bits + (1 << 18)) >> 19 << 19;
            std::memcpy(&scale, &bits, 4);
            if (scale < LEAST) scale = 0, bits = 0;
            inverse = scale > 0 ? 1.0f / scale : 0.0f;
            int code = std::min(15, std::max(0, int(std::nearbyint(-low * inverse))));
            params[g / GROUP] = uint16_t(bits >> 15 | code);
            zero = ints{} + code;
            low = 0;
        }
        for (int i = 0; i < group; i += W) {
            vf level = (load(x + g + i) - set1(low)) * set1(inverse);
            ints code;
            if (BITS == 8) {
                code = nearest(vmin(vmax(level, vf{}), set1(255)));
            } else {
                code = nearest(level) + zero;
                code = code < 0 ? ints{} : code;
                code = code > 15 ? ints{} + 15 : code;
            }
            for (int j = 0; j < W; j++) codes[g + i + j] = uint8_t(code[j]);
        }
    }
}

template <int BITS> void place_key(const uint8_t *codes, int dim, int lane, uint8_t *strip) {
    for (int d = 0, w = 0; d < dim; d += 32 / BITS, w++) {
        uint8_t *to = strip + w * 4 * STRIP + 4 * lane;
        for (int b = 0; b < 4; b++) to[b] = BITS == 8 ? codes[d + b] : uint8_t(codes[d + b] | codes[d + 4 + b] << 4);
    }
}

template <int BITS> void place_value(const uint8_t *codes, int dim, int lane, uint8_t *strip) {
    if (BITS == 8) {
        uint8_t *to = strip + lane / 4 * 4 * dim + lane % 4;
        for (int d = 0; d < dim; d++) to[4 * d] = codes[d];
    } else {
        uint8_t *to = strip + lane / 8 * 4 * dim + lane % 4;
        const int shift = lane % 8 / 4 * 4;
        for (int d = 0; d < dim; d++) to[4 * d] = uint8_t((to[4 * d] & 0xf0 >> shift) | codes[d] << shift);
    }
}

// Codes and scales of a row x [dim] into its slot.
template <int BITS, bool KEY, class E> void store_coded(const E *x, int dim, int64_t slot, uint8_t *codes_plane, uint16_t *params_plane) {
    uint8_t codes[LARGEST_HEAD];
    uint16_t params[LARGEST_HEAD / GROUP];
    encode<BITS>(x, dim, codes, params);
    int lane = int(slot % STRIP);
    uint8_t *strip = codes_plane + slot / STRIP * strip_bytes<BITS>(dim);
    KEY ? place_key<BITS>(codes, dim, lane, strip) : place_value<BITS>(codes, dim, lane, strip);
    uint16_t *to = params_plane + slot / STRIP * strip_params<BITS>(dim);
    for (int i = 0; i < strip_params<BITS>(dim) / STRIP; i++) to[i * STRIP + lane] = params[i];
}

}  // namespace
