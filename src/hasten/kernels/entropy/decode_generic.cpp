#include "lookup.h"

#define VARIANT plain

namespace plain {

struct Coder {
    using Symbol = uint16_t;
    Lookup tables;
    uint32_t state[LANES];

    int64_t fill(const Decode *a) { return tables.fill(a->counts, a->channels, a->alphabet); }
    void load(const uint32_t *from) { std::memcpy(state, from, sizeof state); }
    void save(uint32_t *to) const { std::memcpy(to, state, sizeof state); }

    // The next symbol of every channel from `group` on; false when words are missing. Reads up to LANES words behind `end`.
    bool take(int64_t group, Symbol *symbols, const uint16_t *&next, const uint16_t *end) {
        const uint16_t *edges = tables.edges.get() + group * tables.stride;
        const uint8_t *first = tables.first.get() + group * Lookup::BUCKETS;
        for (int lane = 0; lane < LANES; ++lane, edges += tables.stride, first += Lookup::BUCKETS) {
            uint32_t x = state[lane];
            const uint32_t slot = x & (TOTAL - 1);
            const uint16_t *edge = edges + first[slot >> Lookup::SHIFT];
            edge += slot >= edge[1];  // about as often as not: no branch
            while (slot >= edge[1]) ++edge;
            symbols[lane] = Symbol(edge - edges);
            x = uint32_t(edge[1] - edge[0]) * (x >> PRECISION) + (slot - edge[0]);
            const bool low = x < LOWEST;
            state[lane] = low ? x << 16 | *next : x;
            next += low;
        }
        return next <= end;
    }
};

}  // namespace plain

#include "decode.h"
