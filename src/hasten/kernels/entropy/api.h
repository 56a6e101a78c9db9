// Entropy coding of small integers by channel (engine/kv/bitstream/native.py). Functions return what they say, or a negative Fault.
#pragma once

#include <cstdint>

constexpr int LANES = 32;         // states of a stream, taken in turns by the channels of a row
constexpr int PRECISION = 14;     // bits of a cumulative count: a 32-bit state stays at least four times their total
constexpr uint32_t TOTAL = 1u << PRECISION;
constexpr uint32_t LOWEST = 1u << 16;  // of a state between two symbols; below it a state takes a word of 16 bits in
constexpr int MOST_SYMBOLS = 256;

enum Fault : int64_t { BAD_TABLE = -1, BAD_ARGUMENT = -2, NO_ROOM = -3, TRUNCATED = -4, CORRUPT = -5, NO_MEMORY = -6 };

struct Encode {
    const uint8_t *symbols;  // [rows, channels], each below `alphabet`
    const uint16_t *counts;  // [alphabet + 1, channels] cumulative: 0 first, TOTAL last, rising in every channel
    int64_t rows, channels, alphabet;
    uint8_t *out;
    int64_t capacity;  // bytes
};

struct Place {
    const float *values;     // [rows, heads, dim]
    const float *cos_sin;    // [positions, 2, rotary / 2], or null: nothing is rotated
    const int32_t *at;       // [rows] positions
    const int64_t *offsets;  // [rows] where a row's first head goes in `out`, in elements
    int64_t rows, heads, dim, rotary, positions;
    int64_t head_stride;  // elements
    int64_t kind;         // of `out`: 0 float32, 1 bfloat16, 2 float16
    void *out;
    int64_t elements;  // that `out` has
};

struct Decode {
    const uint8_t *stream;
    int64_t bytes;
    const uint16_t *counts;
    int64_t rows, channels, alphabet;
    int64_t escape;  // the symbol that stands for the next of `escapes`, or -1
    const int16_t *escapes;
    int64_t escape_count;
    const int16_t *low;   // [channels] what symbol 0 stands for
    const float *step;    // [channels]
    const float *scale;   // [rows] or null: 1
    const float *base;    // [ceil(rows / base_rows), channels] or null: 0
    int64_t base_rows;    // rows that share a row of `base`
    float *out;           // [rows, channels] base + scale * step * (low + symbol), unless `place` says where they go
    const Place *place;   // or null; its `values` are not read
};

extern "C" {
int32_t hasten_entropy_interface();
int64_t hasten_entropy_encode(const Encode *arguments);  // bytes written
int64_t hasten_entropy_decode(const Decode *arguments);  // 0
int64_t hasten_entropy_place(const Place *arguments);    // 0
// For tests: the variants this processor runs, best first, and which one to use from now on.
int32_t hasten_entropy_variants();
int32_t hasten_entropy_use(int32_t variant);
}
