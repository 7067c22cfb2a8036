// `noise.py`: exponentially distributed numbers that depend on key and token alone.
#pragma once
#include "float_bits.h"
#include "rows.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int kLanes = 16;
constexpr int kBlock = 64;  // tokens that share sixteen Philox blocks

// Words in the low halves of lanes; the upper halves hold anything.
#if defined(__AVX512F__)
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif
typedef uint64_t Wide __attribute__((vector_size(kWide * 8)));
typedef uint32_t Narrow __attribute__((vector_size(kWide * 4)));

inline Wide times(Wide words, uint32_t factor) {
#if defined(__AVX512F__)
  return (Wide)_mm512_mul_epu32((__m512i)words, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
  return (Wide)_mm256_mul_epu32((__m256i)words, _mm256_set1_epi64x(factor));
#else
  return (words & 0xffffffffu) * factor;
#endif
}

struct Words {
  uint32_t of[4][kLanes];
};

// Philox4x32-10 of sixteen counters that differ in their third word.
inline Words philox(const Knobs& knobs, const uint32_t* blocks, uint32_t more) {
  Words words;
  for (int start = 0; start < kLanes; start += kWide) {
    Narrow numbers;
    std::memcpy(&numbers, blocks + start, sizeof numbers);
    Wide c0 = Wide{} + uint64_t(knobs.position), c1 = Wide{} + uint64_t(knobs.index);
    Wide c2 = __builtin_convertvector(numbers, Wide), c3 = Wide{} + more;
    uint32_t k0 = uint32_t(knobs.seed), k1 = uint32_t(uint64_t(knobs.seed) >> 32);
    for (int round = 0; round < 10; ++round) {
      Wide product0 = times(c0, 0xD2511F53u), product1 = times(c2, 0xCD9E8D57u);
      c0 = (product1 >> 32) ^ c1 ^ uint64_t(k0);
      c2 = (product0 >> 32) ^ c3 ^ uint64_t(k1);
      c1 = product1;
      c3 = product0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const Wide* last[4] = {&c0, &c1, &c2, &c3};
    for (int word = 0; word < 4; ++word) {
      Narrow low = __builtin_convertvector(*last[word], Narrow);
      std::memcpy(words.of[word] + start, &low, sizeof low);
    }
  }
  return words;
}

inline uint32_t block_of(int64_t id) { return uint32_t(id / kBlock * kLanes + id % kLanes); }
inline int word_of(int64_t id) { return int(id % kBlock / kLanes); }

// `noise._log`.
inline float log_of(float f, float exponent) {
  float square = f * f;
  float p = 7.0376836292e-2f;
  p = p * f + -1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f + -1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f + -1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f + -2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  float tail = f * square * p + exponent * -2.12194440e-4f - square * 0.5f;
  return f + tail + exponent * 0.693359375f;
}

// `noise.logarithm`.
inline float logarithm(float x) {
  uint32_t bits = bits_of(x);
  float exponent = float(int32_t(bits >> 23) - 126);
  float mantissa = float_of((bits & 0x7fffff) | 0x3f000000);
  if (mantissa < 0.70710678f) {
    exponent -= 1.0f;
    mantissa += mantissa;
  }
  return log_of(mantissa - 1.0f, exponent);
}

// `noise.exponential`.
inline float exponential(uint32_t first, uint32_t second) {
  if (first >= 1u << 30) return -logarithm((float(~first) + 0.5f) * 0x1p-32f);
  float v = first < 256 ? float(first) * 0x1p-32f + (float(second) + 0.5f) * 0x1p-64f
                        : (float(first) + 0.5f) * 0x1p-32f;
  return -log_of(-v, 0.0f);
}

// `noise.reciprocal`.
inline float reciprocal(float x) {
  float y = float_of(0x7EF311C7u - bits_of(x));
  for (int i = 0; i < 4; ++i) y = y * (2.0f - x * y);
  return y;
}

}  // namespace
