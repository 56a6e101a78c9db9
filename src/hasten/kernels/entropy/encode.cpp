// Range variant of asymmetric numeral systems (Duda, 2013), interleaved (Giesen, 2014): symbols are put in from the last to the first,
// words come out from the last to the first, so that decoding reads both forwards.
#include "tables.h"

int64_t hasten_entropy_encode(const Encode *a) {
    if (!sizes_fit(a->rows, a->channels, a->alphabet)) return BAD_ARGUMENT;
    Tables tables;
    if (const int64_t fault = tables.fill(a->counts, a->channels, a->alphabet)) return fault;
    const int64_t lanes = a->channels < LANES ? a->channels : LANES;
    uint32_t state[LANES];
    for (uint32_t &x : state) x = LOWEST;
    const int64_t head = lanes * 4;
    if (a->capacity < head) return NO_ROOM;
    const int64_t room = (a->capacity - head) / 2;
    std::unique_ptr<uint16_t, Free> words(static_cast<uint16_t *>(std::malloc(size_t(room) * 2 + 2)));
    if (!words) return NO_MEMORY;
    int64_t at = room;
    const uint16_t *counts = tables.counts.get();
    for (int64_t row = a->rows - 1; row >= 0; --row) {
        const uint8_t *symbols = a->symbols + row * a->channels;
        for (int64_t c = a->channels - 1; c >= 0; --c) {
            if (symbols[c] >= a->alphabet) return BAD_ARGUMENT;
            const uint16_t *count = counts + symbols[c] * tables.width + c;
            const uint32_t start = count[0], frequency = count[tables.width] - start;
            uint32_t &x = state[c % LANES];
            if (x >> (32 - PRECISION) >= frequency) {
                if (at == 0) return NO_ROOM;
                words.get()[--at] = uint16_t(x);
                x >>= 16;
            }
            x = (x / frequency << PRECISION) + x % frequency + start;
        }
    }
    std::memcpy(a->out, state, size_t(head));
    std::memcpy(a->out + head, words.get() + at, size_t(room - at) * 2);
    return head + (room - at) * 2;
}
