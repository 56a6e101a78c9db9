#if defined(__x86_64__)
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#include <immintrin.h>

#include "api.h"

#define VARIANT avx512
#define BYTES 64
#define HAS_REFILL
#define HAS_FIND

namespace avx512 {

// Every state below LOWEST takes the next word in; false when there is none. Reads up to 32 bytes behind `end`, uses none of them.
inline __attribute__((always_inline)) bool refill(uint32_t *state, const uint16_t *&next, const uint16_t *end) {
    for (int half = 0; half < LANES; half += 16) {
        const __m512i x = _mm512_load_si512(state + half);
        const __mmask16 low = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(LOWEST));
        const int taken = __builtin_popcount(low);
        if (end - next < taken) return false;
        const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(next)));
        const __m512i filled = _mm512_or_si512(_mm512_slli_epi32(x, 16), _mm512_maskz_expand_epi32(low, words));
        _mm512_store_si512(state + half, _mm512_mask_mov_epi32(x, low, filled));
        next += taken;
    }
    return true;
}

// For each lane the symbol of [start, stop) that its slot lies in. Edges that all lanes have passed are skipped eight at a time, and the
// first that none has passed is the last: lanes lie together around the middle of their distributions.
inline __attribute__((always_inline)) void find(const uint16_t *edge, int64_t width, int64_t alphabet, const uint16_t *slots, uint16_t
*symbols,
                                                uint16_t *starts, uint16_t *stops) {
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

}  // namespace avx512

#include "decode.h"
#endif
