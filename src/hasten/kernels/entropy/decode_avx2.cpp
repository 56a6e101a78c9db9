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

    // The next symbol of every channel from `group` on; false when words are missing. Reads up to LANES words behind `end`.
    inline __attribute__((always_inline)) bool take(int64_t group, Symbol *symbols, const uint16_t *&next, const uint16_t *end) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), ones = _mm256_set1_epi32(0xffff);
        const __m256i buckets = _mm256_slli_epi32(lane, 6), strides = _mm256_mullo_epi32(lane, _mm256_set1_epi32(int(tables.stride)));
        static_assert(Lookup::BUCKETS == 1 << 6, "of the shift above");
#pragma GCC unroll 4
        for (int part = 0; part < LANES / 8; ++part) {
            const int64_t channel = group + part * 8;
            const auto *first = reinterpret_cast<const int *>(tables.first.get() + channel * Lookup::BUCKETS);
            const uint16_t *edges = tables.edges.get() + channel * tables.stride;
            const __m256i x = state[part], slot = _mm256_and_si256(x, _mm256_set1_epi32(TOTAL - 1));
            const __m256i bucket = _mm256_add_epi32(buckets, _mm256_srli_epi32(slot, Lookup::SHIFT));
            const __m256i from = _mm256_and_si256(_mm256_i32gather_epi32(first, bucket, 1), _mm256_set1_epi32(0xff));
            // Four edges a lane, the one below the slot and the next three: lanes 0, 1, 4, 5 and 2, 3, 6, 7, so that the shuffles below
            // bring them back in order.
            const __m256i at = _mm256_permute4x64_epi64(_mm256_add_epi32(from, strides), 0xd8);
            const auto *words = reinterpret_cast<const long long *>(edges);
            const __m256 a = _mm256_castsi256_ps(_mm256_i32gather_epi64(words, _mm256_castsi256_si128(at), 2));
            const __m256 b = _mm256_castsi256_ps(_mm256_i32gather_epi64(words, _mm256_extracti128_si256(at, 1), 2));
            const __m256i near = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
            const __m256i far = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
            const __m256i e0 = _mm256_and_si256(near, ones), e1 = _mm256_srli_epi32(near, 16);
            const __m256i e2 = _mm256_and_si256(far, ones), e3 = _mm256_srli_epi32(far, 16);
            const __m256i below1 = _mm256_cmpgt_epi32(e1, slot), below2 = _mm256_cmpgt_epi32(e2, slot);
            __m256i start = _mm256_blendv_epi8(_mm256_blendv_epi8(e2, e1, below2), e0, below1);
            __m256i stop = _mm256_blendv_epi8(_mm256_blendv_epi8(e3, e2, below2), e1, below1);
            __m256i symbol = _mm256_add_epi32(_mm256_add_epi32(from, _mm256_set1_epi32(2)), _mm256_add_epi32(below1, below2));
            const int found = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(e3, slot)));
            if (__builtin_expect(found != 0xff, 0)) search(0xff & ~found, edges, slot, symbol, start, stop);
            _mm256_store_si256(reinterpret_cast<__m256i *>(symbols + part * 8), symbol);
            const __m256i next_x = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_sub_epi32(stop, start), _mm256_srli_epi32(x, PRECISION)),
                                                    _mm256_sub_epi32(slot, start));
            const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(next_x, 16), _mm256_setzero_si256());
            const int set = _mm256_movemask_ps(_mm256_castsi256_ps(low));
            const __m256i turns = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(TURNS.of[set])));
            const __m256i taken = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(next)));
            const __m256i filled = _mm256_or_si256(_mm256_slli_epi32(next_x, 16), _mm256_permutevar8x32_epi32(taken, turns));
            state[part] = _mm256_blendv_epi8(next_x, filled, low);
            next += __builtin_popcount(unsigned(set));
        }
        return next <= end;
    }

    // Goes on for the lanes of `missing`, whose slots lie beyond three edges: in the tails, where symbols are narrow.
    __attribute__((noinline)) void search(int missing, const uint16_t *edges, __m256i slots, __m256i &symbols, __m256i &starts,
                                          __m256i &stops) const {
        alignas(32) uint32_t slot[8], symbol[8], start[8], stop[8];
        _mm256_store_si256(reinterpret_cast<__m256i *>(slot), slots);
        _mm256_store_si256(reinterpret_cast<__m256i *>(symbol), symbols);
        _mm256_store_si256(reinterpret_cast<__m256i *>(start), starts);
        _mm256_store_si256(reinterpret_cast<__m256i *>(stop), stops);
        for (; missing; missing &= missing - 1) {
            const int lane = __builtin_ctz(unsigned(missing));
            const uint16_t *edge = edges + lane * tables.stride;
            while (slot[lane] >= edge[symbol[lane] + 1]) ++symbol[lane];
            start[lane] = edge[symbol[lane]];
            stop[lane] = edge[symbol[lane] + 1];
        }
        symbols = _mm256_load_si256(reinterpret_cast<const __m256i *>(symbol));
        starts = _mm256_load_si256(reinterpret_cast<const __m256i *>(start));
        stops = _mm256_load_si256(reinterpret_cast<const __m256i *>(stop));
    }
};

}  // namespace avx2

#include "decode.h"
#endif
