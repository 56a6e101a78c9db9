// Tables for decoders that find a symbol by its slot: channel after channel, so that what a symbol needs lies together.
#pragma once

#include "tables.h"

namespace {

struct Lookup {
    static constexpr int BUCKETS = 64, SHIFT = 8;  // of a channel's slots, by the upper bits
    static constexpr int AHEAD = 8;                     // edges that are read at a time
    static_assert(BUCKETS << SHIFT == TOTAL, "buckets hold all slots");

    std::unique_ptr<uint16_t, Free> edges;  // [width, stride] cumulative counts, then AHEAD - 1 that no slot reaches
    std::unique_ptr<uint8_t, Free> first;   // [width, BUCKETS] the symbol in which a bucket's first slot lies
    int64_t width = 0, stride = 0;

    // 0 or a Fault. A channel that is not there has one symbol of all the probability, which leaves its state as it is.
    int64_t fill(const uint16_t *counts, int64_t channels, int64_t alphabet) {
        width = (channels + LANES - 1) / LANES * LANES;
        stride = alphabet + AHEAD;
        edges.reset(static_cast<uint16_t *>(std::malloc(size_t(width * stride) * sizeof(uint16_t))));
        first.reset(static_cast<uint8_t *>(std::calloc(size_t(width * BUCKETS), 1)));
        if (!edges || !first) return NO_MEMORY;
        for (int64_t c = 0; c < width; ++c) {
            uint16_t *edge = edges.get() + c * stride;
            const bool there = c < channels;
            uint64_t bad = 0;
            for (int64_t s = 0; s <= alphabet; ++s) edge[s] = there ? counts[s * channels + c] : s ? TOTAL : 0;
            for (int64_t s = alphabet + 1; s < stride; ++s) edge[s] = INT16_MAX;
            if (!there) continue;
            for (int64_t s = 0; s < alphabet; ++s) bad |= edge[s] >= edge[s + 1];
            if (bad || edge[0] != 0 || edge[alphabet] != TOTAL) return BAD_TABLE;
            // The first symbol of a bucket is as many as there are edges up to its first slot.
            uint8_t passed[BUCKETS + 1] = {};
            for (int64_t s = 1; s < alphabet; ++s) ++passed[(edge[s] + (1 << SHIFT) - 1) >> SHIFT];
            uint8_t before = 0;
            for (int b = 0; b < BUCKETS; ++b) first.get()[c * BUCKETS + b] = before = uint8_t(before + passed[b]);
        }
        return 0;
    }
};

}  // namespace
