#if defined(__x86_64__)
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#include <immintrin.h>

#include "api.h"

#define VARIANT avx512
#define BYTES 64
#define HAS_REFILL

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

}  // namespace avx512

#include "decode.h"
#endif
