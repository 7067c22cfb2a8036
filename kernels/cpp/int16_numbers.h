// Numbers as 16-bit integers that share a scale.
//
// The scale is a power of two, so that nearly all bf16 numbers stay exact: those that are not below
// 1/64 of the largest. What others lose is at most 1/128 of what rounding that one to bf16 may have
// cost (kernels/linear_panels/int16_activations.py).
//
// An integer is also 256 times a signed byte, its upper digit, plus another one. So bytes can be
// multiplied as they are.
#pragma once
#include <algorithm>
#include <limits>

#include "products.h"

namespace native {

constexpr int32_t kMost = 127 * 256 + 127;  // two signed bytes hold it, and its negative

typedef int16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

// The smallest that numbers of some magnitudes can have. NaN if one of them is not finite.
struct Int16Scale {
  float scale, inverse;

  static ALWAYS_INLINE Lanes magnitudes(Lanes x) { return (Lanes)((IntLanes)x & 0x7fffffff); }
  // Magnitudes order like their bits, and NaN comes out on top.
  static Lanes larger_bits(Lanes a, Lanes b) {
    return (Lanes)((IntLanes)a > (IntLanes)b ? (IntLanes)a : (IntLanes)b);
  }

  ALWAYS_INLINE explicit Int16Scale(Lanes largest_magnitudes) {
    float largest = combine_lanes(largest_magnitudes, larger_bits);
    int32_t bits;
    std::memcpy(&bits, &largest, 4);
    // The carry raises the exponent of what would be rounded to more than kMost.
    constexpr int32_t kCarry = 0x101ff, kSmallestExponent = 27;  // 2^-100, with its bias
    bool is_finite = bits < 0x7f800000;
    int32_t exponent = std::max((bits + kCarry) >> 23, kSmallestExponent) - 14;
    scale = is_finite ? power(exponent) : std::numeric_limits<float>::quiet_NaN();
    inverse = is_finite ? power(254 - exponent) : 0.0f;
  }

  ALWAYS_INLINE IntLanes integers(Lanes numbers) const {
    // Adding it rounds to an integer, which then is the sum's last bits.
    constexpr float kRounder = 0x1.8p23f;
    return (IntLanes)(numbers * fill(inverse) + fill(kRounder)) - 0x4b400000;
  }

 private:
  // Of two, from its biased exponent.
  static float power(int32_t exponent) {
    int32_t bits = exponent << 23;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
};

// The lowest bits; compilers take several instructions.
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
