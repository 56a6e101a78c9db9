// The decoder, compiled once for each instruction set: the including file names VARIANT and the BYTES of its vectors, and may bring a
// faster `refill` and `find`.

#include "tables.h"

namespace VARIANT {

constexpr int PART = BYTES / 2;
typedef uint16_t Halves __attribute__((vector_size(BYTES)));

#ifndef HAS_REFILL
// Every state below LOWEST takes the next word in; false when there is none. `next` never passes `end`.
inline __attribute__((always_inline)) bool refill(uint32_t *state, const uint16_t *&next, const uint16_t *end) {
    if (end - next >= LANES) {  // no state takes more than one word
        for (int lane = 0; lane < LANES; ++lane) {
            const bool low = state[lane] < LOWEST;
            state[lane] = low ? state[lane] << 16 | *next : state[lane];
            next += low;
        }
        return true;
    }
    for (int lane = 0; lane < LANES; ++lane) {
        if (state[lane] >= LOWEST) continue;
        if (next == end) return false;
        state[lane] = state[lane] << 16 | *next++;
    }
    return true;
}
#endif

#ifndef HAS_FIND
// For each lane the symbol of [start, stop) that its slot lies in: as many edges as the slot has passed.
inline __attribute__((always_inline)) void find(const uint16_t *edge, int64_t width, int64_t alphabet, const uint16_t *slots, uint16_t
*symbols,
                                                uint16_t *starts, uint16_t *stops) {
    for (int part = 0; part < LANES; part += PART) {
        Halves slot, symbol = {}, start = {}, stop = Halves{} + uint16_t(TOTAL), e;
        std::memcpy(&slot, slots + part, BYTES);
        const uint16_t *from = edge + part;
        for (int64_t s = 1; s < alphabet; ++s, from += width) {
            std::memcpy(&e, from, BYTES);
            const auto passed = slot >= e;
            symbol -= (Halves)passed;
            start = passed ? e : start;
            stop = passed ? stop : (stop < e ? stop : e);
        }
        std::memcpy(symbols + part, &symbol, BYTES);
        std::memcpy(starts + part, &start, BYTES);
        std::memcpy(stops + part, &stop, BYTES);
    }
}
#endif

int64_t decode(const Decode *a) {
    Tables tables;
    if (const int64_t fault = tables.fill(a->counts, a->channels, a->alphabet)) return fault;
    const int64_t lanes = a->channels < LANES ? a->channels : LANES, width = tables.width;
    if (a->bytes < lanes * 4 || a->bytes % 2) return TRUNCATED;
    // Words lie at any address in the stream; the last ones are read a whole vector at a time, so they get room behind them.
    const int64_t count = (a->bytes - lanes * 4) / 2;
    std::unique_ptr<uint16_t, Free> words(static_cast<uint16_t *>(std::aligned_alloc(64, size_t(count * 2 / 64 + 2) * 64)));
    // Steps and lows of whole groups, and one row.
    std::unique_ptr<float, Free> padded(static_cast<float *>(std::aligned_alloc(64, size_t(2 * width) * 4)));
    if (!words || !padded) return NO_MEMORY;
    std::memcpy(words.get(), a->stream + lanes * 4, size_t(count) * 2);
    float *const step = padded.get(), *const low = step + width;
    for (int64_t c = 0; c < width; ++c) {
        step[c] = c < a->channels ? a->step[c] : 0;
        low[c] = c < a->channels ? float(a->low[c]) : 0;
    }
    alignas(64) uint32_t state[LANES];
    for (int lane = 0; lane < LANES; ++lane) state[lane] = LOWEST;
    std::memcpy(state, a->stream, size_t(lanes) * 4);
    for (int64_t lane = 0; lane < lanes; ++lane)
        if (state[lane] < LOWEST) return CORRUPT;
    const uint16_t *next = words.get(), *const end = next + count;
    int64_t escapes = 0;
    alignas(64) float values[LANES];
    alignas(64) uint16_t slots[LANES], symbols[LANES], starts[LANES], stops[LANES];
    const uint16_t escape = a->escape < 0 ? uint16_t(MOST_SYMBOLS) : uint16_t(a->escape);
    for (int64_t row = 0; row < a->rows; ++row) {
        const float scale = a->scale ? a->scale[row] : 1.0f;
        const float *base = a->base ? a->base + row / a->base_rows * a->channels : nullptr;
        float *out = a->out + row * a->channels;
        for (int64_t group = 0; group < width; group += LANES) {
            for (int lane = 0; lane < LANES; ++lane) slots[lane] = uint16_t(state[lane] & (TOTAL - 1));
            find(tables.counts.get() + width + group, width, a->alphabet, slots, symbols, starts, stops);
            for (int lane = 0; lane < LANES; ++lane)
                state[lane] = uint32_t(stops[lane] - starts[lane]) * (state[lane] >> PRECISION) + (slots[lane] - starts[lane]);
            if (!refill(state, next, end)) return TRUNCATED;
            const int64_t here = a->channels - group < LANES ? a->channels - group : LANES;
            bool escaped = false;
            for (int lane = 0; lane < LANES; ++lane) {
                values[lane] = (float(symbols[lane]) + low[group + lane]) * (step[group + lane] * scale);
                escaped |= symbols[lane] == escape;
            }
            if (escaped) {
                for (int64_t lane = 0; lane < here; ++lane) {
                    if (symbols[lane] != escape) continue;
                    if (escapes == a->escape_count) return CORRUPT;
                    values[lane] = float(a->escapes[escapes++]) * (step[group + lane] * scale);
                }
            }
            if (base)
                for (int64_t lane = 0; lane < here; ++lane) values[lane] += base[group + lane];
            std::memcpy(out + group, values, size_t(here) * 4);
        }
    }
    // All is used up, and every state is where encoding began: what was changed on the way is noticed by that.
    if (next != end || escapes != a->escape_count) return CORRUPT;
    for (int lane = 0; lane < LANES; ++lane)
        if (state[lane] != LOWEST) return CORRUPT;
    return 0;
}

}  // namespace VARIANT
