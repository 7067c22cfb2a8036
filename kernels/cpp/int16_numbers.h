// Numbers as 16-bit integers that share a scale.
//
// The scale is a power of two, so nearly all bf16 numbers stay exact, namely those of at least 1/64
// of the largest. The error of others is at most 1/128 of the error that rounding the largest to
// bf16 can cause (kernels/linear_panels/int16_activations.py).
//
// An integer is also 256 times a signed byte, its upper digit, plus another signed byte, so bytes
// can be multiplied as they are.
#pragma once
#include <algorithm>
#include <limits>

#include "products.h"

namespace native {

constexpr int32_t kMost = 127 * 256 + 127;  // two signed bytes hold it, and its negative

typedef int16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

// The smallest scale for numbers of these magnitudes; NaN if one of them is not finite.
struct Int16Scale {
  Lanes scale, inverse;  // the same in all lanes

  // The larger of a magnitude and that of `x`.
  static ALWAYS_INLINE Lanes larger_magnitude(Lanes magnitude, Lanes x) {
    return larger_bits(magnitude, (Lanes)((IntLanes)x & 0x7fffffff));
  }
  // Magnitudes have the order of their bits, and NaN is the largest.
  static Lanes larger_bits(Lanes a, Lanes b) {
    return (Lanes)((IntLanes)a > (IntLanes)b ? (IntLanes)a : (IntLanes)b);
  }

  ALWAYS_INLINE explicit Int16Scale(Lanes largest_magnitudes) {
    IntLanes bits = (IntLanes)combine_everywhere(largest_magnitudes, larger_bits);
    // The carry raises the exponent of numbers that would be rounded to more than kMost.
    constexpr int32_t kCarry = 0x101ff, kSmallestExponent = 27;  // 2^-100, with its bias
    constexpr int32_t kInfinity = 0x7f800000, kNaN = 0x7fc00000;
    IntLanes exponent = (bits + kCarry) >> 23;
    exponent = (exponent > kSmallestExponent ? exponent : repeat_word(kSmallestExponent)) - 14;
    IntLanes is_finite = bits < kInfinity;
    scale = (Lanes)(is_finite ? exponent << 23 : repeat_word(kNaN));
    inverse = (Lanes)((254 - exponent) << 23 & is_finite);
  }

  ALWAYS_INLINE IntLanes integers(Lanes numbers) const {
    // Adding this rounds to an integer, which is then in the sum's last bits.
    constexpr float kRounder = 0x1.8p23f;
    return (IntLanes)(numbers * inverse + fill(kRounder)) - 0x4b400000;
  }
};

// Returns the lowest bits, for which compilers need several instructions.
ALWAYS_INLINE Shorts lowest_shorts(IntLanes x) {
#if defined(__AVX512F__)
  return (Shorts)_mm512_cvtepi32_epi16((__m512i)x);
#else
  return __builtin_convertvector(x, Shorts);
#endif
}
ALWAYS_INLINE Bytes lowest_bytes(IntLanes x) {
#if defined(__AVX512F__)
  return (Bytes)_mm512_cvtepi32_epi8((__m512i)x);
#else
  return __builtin_convertvector(x, Bytes);
#endif
}

}  // namespace native
