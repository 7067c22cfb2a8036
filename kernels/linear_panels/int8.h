// Dot products of unsigned 8-bit weights with signed 8-bit activations, 16 outputs at a time, and
// the activations themselves: rows quantised in blocks of 32.
//
// Written with GCC's vector extensions; instructions are named only where the extensions lack them.
// Integer sums are exact and so the same on every machine.
#pragma once
#include <algorithm>
#include <limits>

#include "integer_dots.h"
#include "vec.h"

namespace native {

constexpr int kOutputs = 16;
constexpr int kBlock = 32;
constexpr int kQuads = kBlock / 4;
constexpr float kSmallest = 1e-30f;  // as kernels/shared/int8_activations.py has it

typedef int32_t I32x16 __attribute__((vector_size(64)));
typedef uint8_t U8x64 __attribute__((vector_size(64)));

inline IntLanes load_ints(const uint8_t* p) {
  IntLanes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline U8x64 load_codes(const uint8_t* p) {
  U8x64 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// sum[o] += w[4o..4o+3] · four, which holds four signed bytes. Codes have at most `bits` bits.
template <int bits>
ALWAYS_INLINE I32x16 dot4(I32x16 sum, U8x64 w, int32_t four) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
  __m256i both = _mm256_set1_epi32(four);
  if constexpr (bits < 8) {
    // Two products of 7 and 8 bits fit 16.
    __m256i parts[2], totals[2];
    std::memcpy(parts, &w, 64);
    std::memcpy(totals, &sum, 64);
    for (int h = 0; h < 2; ++h) {
      __m256i pairs = _mm256_maddubs_epi16(parts[h], both);
      totals[h] = _mm256_add_epi32(totals[h], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    std::memcpy(&sum, totals, 64);
    return sum;
  }
  // Even and odd bytes as 16-bit numbers: `maddubs` would saturate.
  __m256i even_a = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8);
  __m256i odd_a = _mm256_srai_epi16(both, 8);
  const __m256i low = _mm256_set1_epi16(0xff);
  __m256i halves[2], sums[2];
  std::memcpy(halves, &w, 64);
  std::memcpy(sums, &sum, 64);
  for (int h = 0; h < 2; ++h) {
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(halves[h], low), even_a);
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(halves[h], 8), odd_a);
    sums[h] = _mm256_add_epi32(sums[h], _mm256_add_epi32(even, odd));
  }
  std::memcpy(&sum, sums, 64);
  return sum;
#else
  IntLanes words[kOutputs / kLanes], sums[kOutputs / kLanes];
  std::memcpy(words, &w, sizeof words);
  std::memcpy(sums, &sum, sizeof sums);
  for (int part = 0; part < kOutputs / kLanes; ++part)
    sums[part] = dot_quads(sums[part], words[part], four);
  std::memcpy(&sum, sums, sizeof sums);
  return sum;
#endif
}

// 32 activations as scale * code, rounded as defined in kernels/shared/int8_activations.py.
struct Int8Block {
  int8_t codes[kBlock];
  float scale;
  int32_t sums[2];  // of the halves' codes

  template <class T>
  explicit Int8Block(const T* x) {
    float values[kBlock];
    int32_t bits[kBlock], most_bits = 0, rounded[kBlock];
    for (int i = 0; i < kBlock; ++i) values[i] = to_float(x[i]);
    std::memcpy(bits, values, sizeof bits);
    // Magnitudes have the order of their bits, and NaN is the largest.
    for (int i = 0; i < kBlock; ++i) most_bits = std::max(most_bits, bits[i] & 0x7fffffff);
    float most;
    std::memcpy(&most, &most_bits, 4);
    bool finite = most <= std::numeric_limits<float>::max();
    // Numbers that are not finite remain so in the sum, since NaN times zero is NaN.
    scale = finite ? most / 127.0f : std::numeric_limits<float>::quiet_NaN();
    float inverse = finite ? 127.0f / std::max(most, kSmallest) : 0.0f;
    for (int i = 0; i < kBlock; ++i)
      rounded[i] = finite ? int32_t(std::nearbyint(values[i] * inverse)) : 0;
    for (int i = 0; i < kBlock; ++i) codes[i] = int8_t(rounded[i]);
    sums[0] = sums[1] = 0;
    for (int i = 0; i < kBlock / 2; ++i) sums[0] += rounded[i];
    for (int i = kBlock / 2; i < kBlock; ++i) sums[1] += rounded[i];
  }
};

}  // namespace native
