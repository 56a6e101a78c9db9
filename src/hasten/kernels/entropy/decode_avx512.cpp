#if defined(__x86_64__)
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#include <immintrin.h>

#include "tables.h"

#define VARIANT avx512

namespace avx512 {

// Every state below LOWEST takes the next word in. Reads up to 64 bytes from `next` on.
inline __attribute__((always_inline)) void refill(uint32_t *state, const uint16_t *&next) {
    for (int half = 0; half < LANES; half += 16) {
        const __m512i x = _mm512_load_si512(state + half);
        const __mmask16 low = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(LOWEST));
        const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(next)));
        const __m512i filled = _mm512_or_si512(_mm512_slli_epi32(x, 16), _mm512_maskz_expand_epi32(low, words));
        _mm512_store_si512(state + half, _mm512_mask_mov_epi32(x, low, filled));
        next += __builtin_popcount(low);
    }
}

// For each lane the symbol of [start, stop) that its slot lies in. Edges that all lanes have passed are skipped eight at a time, and the
// first that none has passed is the last: lanes lie together around the middle of their distributions.
inline __attribute__((always_inline)) void find(const uint16_t *edge, int64_t width, int64_t alphabet, const uint16_t *slots,
                                                uint16_t *symbols, uint16_t *starts, uint16_t *stops) {
    const __m512i slot = _mm512_load_si512(slots), one = _mm512_set1_epi16(1);
    __m512i start = _mm512_setzero_si512(), stop = _mm512_set1_epi16(TOTAL);
    int64_t s = 0;
    while (s + 8 < alphabet) {
        const __m512i e = _mm512_loadu_si512(edge + (s + 7) * width);
        if (_mm512_cmplt_epu16_mask(slot, e)) break;
        start = e;
        s += 8;
    }
    __m512i symbol = _mm512_set1_epi16(short(s));
    for (const uint16_t *from = edge + s * width; ++s < alphabet; from += width) {
        const __m512i e = _mm512_loadu_si512(from);
        const __mmask32 passed = _mm512_cmpge_epu16_mask(slot, e);
        symbol = _mm512_mask_add_epi16(symbol, passed, symbol, one);
        start = _mm512_mask_mov_epi16(start, passed, e);
        stop = _mm512_mask_min_epu16(stop, ~passed, stop, e);
        if (!passed) break;
    }
    _mm512_store_si512(symbols, symbol);
    _mm512_store_si512(starts, start);
    _mm512_store_si512(stops, stop);
}

struct Coder {
    using Symbol = uint16_t;
    Tables tables;
    alignas(64) uint32_t state[LANES];
    int64_t alphabet;

    int64_t fill(const Decode *a) {
        alphabet = a->alphabet;
        return tables.fill(a->counts, a->channels, alphabet);
    }
    void load(const uint32_t *from) { std::memcpy(state, from, sizeof state); }
    void save(uint32_t *to) const { std::memcpy(to, state, sizeof state); }

    // The next symbol of every channel from `group` on; false when words are missing. Reads up to LANES words behind `end`.
    inline __attribute__((always_inline)) bool take(int64_t group, Symbol *symbols, const uint16_t *&next, const uint16_t *end) {
        alignas(64) uint16_t slots[LANES], starts[LANES], stops[LANES];
        for (int lane = 0; lane < LANES; ++lane) slots[lane] = uint16_t(state[lane] & (TOTAL - 1));
        find(tables.counts.get() + tables.width + group, tables.width, alphabet, slots, symbols, starts, stops);
        for (int lane = 0; lane < LANES; ++lane)
            state[lane] = uint32_t(stops[lane] - starts[lane]) * (state[lane] >> PRECISION) + (slots[lane] - starts[lane]);
        refill(state, next);
        return next <= end;
    }
};

}  // namespace avx512

#include "decode.h"
#endif
