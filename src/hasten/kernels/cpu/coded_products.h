// Exact sums of products of codes with whole numbers of 15 bits, 32 bits a lane.
//
// A lane holds four codes of a byte each. The four numbers that they are multiplied by are two words, the same for all lanes: where
// bytes can be multiplied, their upper digits of 8 bits, then the lower ones; else numbers 0 and 2, then 1 and 3, of 16 bits each.
#pragma once

#include <algorithm>
#include <climits>

#include "coded.h"

#if defined(__AVX2__)

namespace {

constexpr int LANES = STRIP / W;     // vectors of a strip, a lane a slot
constexpr float WHOLE = 127 * 256;   // the largest number: of two digits

#if defined(HASTEN_DOT_BYTES)

using Codes = ints;
struct Sums {
    ints high{}, less{};  // of the digits
    void add(Codes x, ints one, ints two) {
        high = (ints)_mm512_dpbusd_epi32((vi)high, (vi)x, (vi)one);
        less = (ints)_mm512_dpbusd_epi32((vi)less, (vi)x, (vi)two);
    }
    vf joined() const { return fma(to_floats(high), set1(256), to_floats(less)); }
};
// The largest number where a sum is over codes that come to `most`.
inline float largest_whole(int) { return WHOLE; }
// W numbers -> W bytes of first words, W bytes of second ones.
inline void split(ints whole, int8_t *one, int8_t *two) {
    _mm_storeu_si128((__m128i *)one, _mm512_cvtepi32_epi8((vi)((whole + 128) >> 8)));
    _mm_storeu_si128((__m128i *)two, _mm512_cvtepi32_epi8((vi)whole));  // the lowest byte, signed
}

#else

struct Codes {
    ints even, odd;
    Codes() = default;
    Codes(ints x) : even(x & 0x00ff00ff), odd(high_unsigned(x)) {}
};
struct Sums {
    ints all{};
    void add(const Codes &x, ints one, ints two) { all += pairs(x.even, one) + pairs(x.odd, two); }
    vf joined() const { return to_floats(all); }
};
inline float largest_whole(int most) { return std::min(WHOLE, float(INT_MAX / most)); }
inline void split(ints whole, int8_t *one, int8_t *two) {
#if defined(__AVX512F__)
    ints both = (whole & 0xffff) | (ints)_mm512_shuffle_epi32((vi)whole, (_MM_PERM_ENUM)0xee) << 16;
    vi words = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0), (vi)both);
    _mm_storeu_si128((__m128i *)one, _mm512_castsi512_si128(words));
    _mm_storeu_si128((__m128i *)two, _mm512_extracti32x4_epi32(words, 1));
#else
    ints both = (whole & 0xffff) | (ints)_mm256_shuffle_epi32((vi)whole, 0xee) << 16;
    __m128i words = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32((vi)both, _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0)));
    _mm_storel_epi64((__m128i *)one, words);
    _mm_storel_epi64((__m128i *)two, _mm_unpackhi_epi64(words, words));
#endif
}

#endif

inline Codes whole_byte(ints x) { return x; }
inline Codes low_half(ints x) { return x & 0x0f0f0f0f; }
inline Codes high_half(ints x) { return x >> 4 & 0x0f0f0f0f; }

inline int32_t sum_whole(ints x) {
    int32_t sum = 0;
    for (int i = 0; i < W; i++) sum += x[i];
    return sum;
}

// A word in every lane.
inline ints word_at(const int8_t *p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return ints{} + word;
}

// sums[r][n] += codes_of(x[n]) . the numbers whose first word is at p + r * row, the second one `other` bytes behind it.
template <int M, int N>
inline __attribute__((always_inline)) void add_products(const ints (&x)[N], Codes (*codes_of)(ints), const int8_t *p, size_t row, int other,
                                                        Sums (&sums)[M][N]) {
    if constexpr (W == 8 && M <= 3) {  // of 16 registers the numbers need fewer than the codes
        ints one[M], two[M];
        for (int r = 0; r < M; r++) one[r] = word_at(p + r * row), two[r] = word_at(p + r * row + other);
        for (int n = 0; n < N; n++) {
            const Codes codes = codes_of(x[n]);
            for (int r = 0; r < M; r++) sums[r][n].add(codes, one[r], two[r]);
        }
        return;
    }
    Codes codes[N];
    for (int n = 0; n < N; n++) codes[n] = codes_of(x[n]);
    for (int r = 0; r < M; r++) {
        ints one = word_at(p + r * row), two = word_at(p + r * row + other);
        for (int n = 0; n < N; n++) sums[r][n].add(codes[n], one, two);
    }
}

}  // namespace

#endif
