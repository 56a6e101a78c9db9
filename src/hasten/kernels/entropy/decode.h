// Decoding and placing, compiled once for each instruction set: the including file names VARIANT and brings its `Coder`, which takes
// symbols out of a stream.

#include "place.h"
#include "tables.h"

namespace VARIANT {

int64_t place(const Place *a) {
    if (const int64_t fault = fits(*a)) return fault;
    for (int64_t row = 0; row < a->rows; ++row) place_row(*a, row, a->values + row * a->heads * a->dim);
    return 0;
}

int64_t decode(const Decode *a) {
    if (a->place)
        if (const int64_t fault = fits(*a->place)) return fault;
    Coder coder;
    if (const int64_t fault = coder.fill(a)) return fault;
    const int64_t lanes = a->channels < LANES ? a->channels : LANES, width = (a->channels + LANES - 1) / LANES * LANES;
    if (a->bytes < lanes * 4 || a->bytes % 2) return TRUNCATED;
    // Words lie at any address in the stream; the last ones are read a whole vector at a time, so they get room behind them.
    const int64_t count = (a->bytes - lanes * 4) / 2;
    std::unique_ptr<uint16_t, Free> words(static_cast<uint16_t *>(std::aligned_alloc(64, size_t(count * 2 / 64 + 2) * 64)));
    // Steps and lows of whole groups, and one row.
    std::unique_ptr<float, Free> padded(static_cast<float *>(std::aligned_alloc(64, size_t(3 * width) * 4)));
    if (!words || !padded) return NO_MEMORY;
    std::memcpy(words.get(), a->stream + lanes * 4, size_t(count) * 2);
    std::memset(words.get() + count, 0, LANES * 2);
    float *const __restrict step = padded.get(), *const __restrict low = step + width, *const __restrict one_row = low + width;
    for (int64_t c = 0; c < width; ++c) {
        step[c] = c < a->channels ? a->step[c] : 0;
        low[c] = c < a->channels ? float(a->low[c]) : 0;
    }
    alignas(64) uint32_t state[LANES];
    for (int lane = 0; lane < LANES; ++lane) state[lane] = LOWEST;
    std::memcpy(state, a->stream, size_t(lanes) * 4);
    for (int64_t lane = 0; lane < lanes; ++lane)
        if (state[lane] < LOWEST) return CORRUPT;
    coder.load(state);
    const uint16_t *next = words.get(), *const end = next + count;
    int64_t escapes = 0;
    alignas(64) typename Coder::Symbol symbols[LANES];
    const auto escape = a->escape < 0 ? typename Coder::Symbol(MOST_SYMBOLS) : typename Coder::Symbol(a->escape);
    for (int64_t row = 0; row < a->rows; ++row) {
        const float scale = a->scale ? a->scale[row] : 1.0f;
        const float *base = a->base ? a->base + row / a->base_rows * a->channels : nullptr;
        for (int64_t group = 0; group < width; group += LANES) {
            if (!coder.take(group, symbols, next, end)) return TRUNCATED;
            const int64_t here = a->channels - group < LANES ? a->channels - group : LANES;
            float *const values = one_row + group;
            int escaped = 0;
            for (int lane = 0; lane < LANES; ++lane) escaped |= symbols[lane] == escape ? -1 : 0;
            for (int lane = 0; lane < LANES; ++lane)
                values[lane] = (float(int(symbols[lane])) + low[group + lane]) * (step[group + lane] * scale);
            if (__builtin_expect(escaped, 0)) {
                for (int64_t lane = 0; lane < here; ++lane) {
                    if (symbols[lane] != escape) continue;
                    if (escapes == a->escape_count) return CORRUPT;
                    values[lane] = float(a->escapes[escapes++]) * (step[group + lane] * scale);
                }
            }
            if (base)
                for (int64_t lane = 0; lane < here; ++lane) values[lane] += base[group + lane];
        }
        if (a->place) place_row(*a->place, row, one_row);
        else std::memcpy(a->out + row * a->channels, one_row, size_t(a->channels) * 4);
    }
    // All is used up, and every state is where encoding began: what was changed on the way is noticed by that.
    if (next != end || escapes != a->escape_count) return CORRUPT;
    coder.save(state);
    for (int lane = 0; lane < LANES; ++lane)
        if (state[lane] != LOWEST) return CORRUPT;
    return 0;
}

}  // namespace VARIANT
