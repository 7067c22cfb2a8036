// Activations as 16-bit integers, and dot products of them with codes.
//
// Rows are rounded in blocks of 32 as kernels/linear_panels/int16_activations.py says: scales are powers of two, so
// that nearly all bf16 numbers stay exact. What others lose is at most 1/128 of what rounding their
// block's largest number to bf16 may have cost.
//
// An integer is also 256 times a signed byte, its upper digit, plus another one. So codes that are
// bytes can be multiplied as they are. Sums are exact either way: with 32 codes up to 255 and what
// belongs to their offset they stay below 2^29.
#pragma once
#include "int8.h"

namespace native {

constexpr int32_t kMost = 127 * 256 + 127;  // two signed bytes hold it, and its negative

typedef int16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

// sum[o] += the pair of 16-bit numbers in w[o] . the pair in `two`.
ALWAYS_INLINE IntLanes dot_pairs(IntLanes sum, IntLanes w, int32_t two) {
#if defined(__AVX512VNNI__)
  return (IntLanes)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(two));
#elif defined(__AVX512BW__)
  return sum + (IntLanes)_mm512_madd_epi16((__m512i)w, _mm512_set1_epi32(two));
#elif defined(__AVXVNNI__)
  return (IntLanes)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)w, _mm256_set1_epi32(two));
#elif defined(__AVX2__)
  return sum + (IntLanes)_mm256_madd_epi16((__m256i)w, _mm256_set1_epi32(two));
#else
  return sum + (w << 16 >> 16) * int32_t(int16_t(two)) + (w >> 16) * (two >> 16);
#endif
}

// 32 activations as scale * integer. What is not finite makes the scale NaN, and zeros.
struct Int16Block {
  static constexpr int kRegisters = kBlock / kLanes;

  IntLanes integers[kRegisters];
  float scale;

  template <class X>
  ALWAYS_INLINE explicit Int16Block(const X* x) {
    Lanes numbers[kRegisters], most{};
    for (int i = 0; i < kRegisters; ++i) {
      numbers[i] = load_lanes(x + i * kLanes);
      most = larger_bits(most, (Lanes)((IntLanes)numbers[i] & 0x7fffffff));
    }
    float largest = combine_lanes(most, larger_bits);
    int32_t bits;
    std::memcpy(&bits, &largest, 4);
    if (bits >= 0x7f800000) {
      scale = std::numeric_limits<float>::quiet_NaN();
      for (IntLanes& to : integers) to = IntLanes{};
      return;
    }
    // The carry raises the exponent of what would be rounded to more than kMost.
    constexpr int32_t kCarry = 0x101ff, kSmallestExponent = 27;  // 2^-100, with its bias
    int32_t exponent = std::max((bits + kCarry) >> 23, kSmallestExponent) - 14;
    scale = power(exponent);
    Lanes inverse = fill(power(254 - exponent));
    for (int i = 0; i < kRegisters; ++i) {
      // Adding it rounds to an integer, which then is the sum's last bits.
      constexpr float kRounder = 0x1.8p23f;
      integers[i] = (IntLanes)(numbers[i] * inverse + fill(kRounder)) - 0x4b400000;
    }
  }

  // Of a half of the block, which is whole registers or one.
  float sum_of_half(int half) const {
    Lanes all{};
    for (int i = half * kRegisters / 2; i < (half + 1) * kRegisters / 2; ++i)
      all += __builtin_convertvector(integers[i], Lanes);
    return sum(all);
  }

  // Of each four neighbours the first and third make a word, then the second and fourth.
  ALWAYS_INLINE void store_pairs(int32_t* to) const {
    for (int i = 0; i < kRegisters; ++i, to += kLanes / 2) {
      Shorts in_order = shorts(integers[i]);
#if defined(__AVX512F__)
      Shorts pairs = __builtin_shufflevector(in_order, in_order, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9,
                                             11, 12, 14, 13, 15);
#else
      Shorts pairs = __builtin_shufflevector(in_order, in_order, 0, 2, 1, 3, 4, 6, 5, 7);
#endif
      std::memcpy(to, &pairs, sizeof pairs);
    }
  }

  // Upper digits of each four neighbours in a word, then the lower ones.
  ALWAYS_INLINE void store_digits(int32_t* to) const {
    for (int i = 0; i < kRegisters; ++i, to += kLanes / 4) {
      Bytes upper = bytes((integers[i] + 128) >> 8), lower = bytes(integers[i]);
      std::memcpy(to, &upper, sizeof upper);
      std::memcpy(to + kQuads, &lower, sizeof lower);
    }
  }

 private:
  // Magnitudes order like their bits, and NaN comes out on top.
  static Lanes larger_bits(Lanes a, Lanes b) {
    return (Lanes)((IntLanes)a > (IntLanes)b ? (IntLanes)a : (IntLanes)b);
  }
  // Of two, from its biased exponent.
  static float power(int32_t exponent) {
    int32_t bits = exponent << 23;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  // The lowest bits; compilers take several instructions.
  static ALWAYS_INLINE Shorts shorts(IntLanes x) {
#if defined(__AVX512F__)
    return (Shorts)_mm512_cvtepi32_epi16((__m512i)x);
#else
    return __builtin_convertvector(x, Shorts);
#endif
  }
  static ALWAYS_INLINE Bytes bytes(IntLanes x) {
#if defined(__AVX512F__)
    return (Bytes)_mm512_cvtepi32_epi8((__m512i)x);
#else
    return __builtin_convertvector(x, Bytes);
#endif
  }
};

}  // namespace native
