#if defined(__x86_64__)
#pragma GCC target("avx2,fma,popcnt")
#include <immintrin.h>

#include "lookup.h"

#define VARIANT avx2

namespace avx2 {

// For each set of eight lanes that take a word in, which of the next words each takes.
struct Turns {
    uint8_t of[256][8] = {};
    constexpr Turns() {
        for (int set = 0; set < 256; ++set)
            for (int lane = 0, taken = 0; lane < 8; ++lane) {
                of[set][lane] = uint8_t(taken);
                taken += set >> lane & 1;
            }
    }
};
constexpr Turns TURNS;

struct Coder {
    using Symbol = uint32_t;
    Lookup tables;
    __m256i state[LANES / 8];

    int64_t fill(const Decode *a) { return tables.fill(a->counts, a->channels, a->alphabet); }
    void load(const uint32_t *from) { std::memcpy(state, from, sizeof state); }
    void save(uint32_t *to) const { std::memcpy(to, state, sizeof state); }

    // The next symbol of every channel from `group` on; false when words are missing. Reads up to LANES words behind `end`. Symbols are
    // looked up one by one, which takes less time here than gathering them; the rest is done in vectors.
    inline __attribute__((always_inline)) bool take(int64_t group, Symbol *symbols, const uint16_t *&next, const uint16_t *end) {
        alignas(32) uint32_t slots[LANES], spans[LANES];  // a span: where a symbol starts and, in the upper half, stops
        const __m256i within = _mm256_set1_epi32(TOTAL - 1);
        for (int part = 0; part < LANES / 8; ++part)
            _mm256_store_si256(reinterpret_cast<__m256i *>(slots + part * 8), _mm256_and_si256(state[part], within));
        const int64_t stride = tables.stride;
        const uint16_t *edges = tables.edges.get() + group * stride;
        const uint8_t *first = tables.first.get() + group * Lookup::BUCKETS;
#pragma GCC unroll 8
        for (int lane = 0; lane < LANES; ++lane, edges += stride, first += Lookup::BUCKETS) {
            const uint32_t slot = slots[lane], from = first[slot >> Lookup::SHIFT];
            const uint16_t *edge = edges + from;
            // How many of the next eight edges the slot has passed; more are rare even in the tails, where symbols are narrow.
            const __m128i ahead = _mm_loadu_si128(reinterpret_cast<const __m128i *>(edge + 1));
            const int above = _mm_movemask_epi8(_mm_cmpgt_epi16(ahead, _mm_set1_epi16(short(slot))));
            uint32_t passed = uint32_t(__builtin_ctz(unsigned(above) | 1u << 16)) / 2;
            if (__builtin_expect(above == 0, 0))
                while (slot >= edge[passed + 1]) ++passed;
            symbols[lane] = from + passed;
            std::memcpy(spans + lane, edge + passed, 4);
        }
#pragma GCC unroll 4
        for (int part = 0; part < LANES / 8; ++part) {
            const __m256i x = state[part], span = _mm256_load_si256(reinterpret_cast<const __m256i *>(spans + part * 8));
            const __m256i start = _mm256_and_si256(span, _mm256_set1_epi32(0xffff)), stop = _mm256_srli_epi32(span, 16);
            const __m256i next_x = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_sub_epi32(stop, start), _mm256_srli_epi32(x, PRECISION)),
                                                    _mm256_sub_epi32(_mm256_and_si256(x, within), start));
            const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(next_x, 16), _mm256_setzero_si256());
            const int set = _mm256_movemask_ps(_mm256_castsi256_ps(low));
            const __m256i turns = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(TURNS.of[set])));
            const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(next)));
            const __m256i filled = _mm256_or_si256(_mm256_slli_epi32(next_x, 16), _mm256_permutevar8x32_epi32(words, turns));
            state[part] = _mm256_blendv_epi8(next_x, filled, low);
            next += __builtin_popcount(unsigned(set));
        }
        return next <= end;
    }
};

}  // namespace avx2

#include "decode.h"
#endif
