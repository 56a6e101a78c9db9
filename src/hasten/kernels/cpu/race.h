// The race that a row's token is drawn by: token t arrives at time E / p, where E is exponentially distributed and a function of
// the row's key and t alone; the first to arrive is drawn. So each token wins with probability p, and two rows with the same key
// and similar distributions mostly draw the same token. Compared are logarithms: log p - log E, the larger the earlier.
#pragma once

#include "simd.h"

namespace {

// 32 well-mixed bits of 32 (the multipliers are those of Wellons' search for low bias, 2018).
template <class T> inline T mixed(T x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

struct Race {
    typedef uint32_t words __attribute__((vector_size(4 * W)));
    static constexpr uint32_t OTHER = 0x9e3779b9u;  // tells the lower bits from the upper ones
    static constexpr float EARLIEST = 38;           // -log of the earliest arrival, 2^-54
    static constexpr float SLACK = 1e-3f;           // more than what `bound` and its sum lose by rounding

    uint32_t first, second;
    explicit Race(uint64_t key) : first(uint32_t(key)), second(uint32_t(key >> 32)) {}

    // -log E of a token: E = -log(1 - v) with v in (0, 1) of 53 bits.
    double earliness(int token) const {
        uint32_t x = mixed(uint32_t(token) + first) ^ second;
        uint64_t bits = uint64_t(mixed(x)) << 21 | mixed(x ^ OTHER) >> 11;
        return -std::log(-std::log1p(-(double(bits) + 0.5) * 0x1p-53));
    }

    // At least `earliness` of the tokens from `token` on, but for rounding: E >= v, and the bits of a float above its exponent
    // rise more slowly than its logarithm.
    vf bound(int token) const {
        words lanes;
        for (int i = 0; i < W; i++) lanes[i] = uint32_t(i);
        words x = mixed(mixed(lanes + (uint32_t(token) + first)) ^ second) >> 8;
        vf v = __builtin_convertvector((ints)x, vf);  // whole numbers below 2^24: exact
        vf log2_v = __builtin_convertvector(floats_to_bits(v), vf) * 0x1p-23f - 127.0f;
        return (24.0f - log2_v) * 0.693148f;
    }
};

struct Winner {
    double score = -std::numeric_limits<double>::infinity();
    int token = -1;
    void meet(double earlier, int other) {
        if (earlier > score) score = earlier, token = other;
    }
};

}  // namespace
