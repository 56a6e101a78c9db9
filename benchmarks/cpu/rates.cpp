// What one core multiplies at most: chains of independent dot-product instructions on registers, touching no memory.
// Compiled by `bandwidth.py` for this processor. Each returns the multiplications and additions it did.
#include <immintrin.h>

#include <cstdint>

namespace {
constexpr int kChains = 16;  // more than latency times instructions a cycle, on every processor that has them
volatile float float_sink;
volatile int int_sink;
}  // namespace

extern "C" int64_t bf16_rate(int64_t rounds) {
#ifdef __AVX512BF16__
  __m512 sums[kChains];
  for (auto& sum : sums) sum = _mm512_set1_ps(1.0f);
  __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f80), y = (__m512bh)_mm512_setzero_si512();
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& sum : sums) sum = _mm512_dpbf16_ps(sum, x, y);
    asm volatile("" : "+v"(x), "+v"(y));  // or the compiler would see that the product is always the same
  }
  float total = 0;
  for (auto& sum : sums) total += _mm512_reduce_add_ps(sum);
  float_sink = total;
  return rounds * kChains * 64;
#else
  return 0;
#endif
}

extern "C" int64_t int8_rate(int64_t rounds) {
#ifdef __AVX512VNNI__
  __m512i sums[kChains];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  __m512i x = _mm512_set1_epi8(1), y = _mm512_set1_epi8(1);
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& sum : sums) sum = _mm512_dpbusd_epi32(sum, x, y);
    asm volatile("" : "+v"(x), "+v"(y));
  }
  int total = 0;
  for (auto& sum : sums) total += _mm512_reduce_add_epi32(sum);
  int_sink = total;
  return rounds * kChains * 128;
#else
  return 0;
#endif
}
