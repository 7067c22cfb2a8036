// Products of matrices in fp32: kDepth terms at a time are multiplied and summed.
//
// In registers of packed factors kDepth rows (of Elements) are together in each lane; `repeat`
// gives every lane the same kDepth factors of the other matrix. Sums are always in the order of the
// rows, so a loop may be cut into blocks without changing a bit.
#pragma once
#include <utility>

#include "lanes.h"

// Lambdas need this: otherwise they would remain calls, and their captures would stay in memory.
#define INLINE_BODY __attribute__((always_inline))
#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace native {

// Calls `function` with an integral_constant of 1 <= n <= kMost.
template <int kMost, class Function>
inline void with_constant(int64_t n, Function function) {
  if constexpr (kMost > 1)
    if (n < kMost) return with_constant<kMost - 1>(n, function);
  function(std::integral_constant<int, kMost>{});
}

// Calls `function` with the integral_constants 0 .. n - 1. Arrays with such indices are registers
// from the start; arrays that a loop indexes may go through memory.
template <class Function, int... i>
ALWAYS_INLINE void each(std::integer_sequence<int, i...>, Function function) {
  (function(std::integral_constant<int, i>{}), ...);
}
template <int n, class Function>
ALWAYS_INLINE void each(Function function) {
  each(std::make_integer_sequence<int, n>{}, function);
}

// Singly in fp32, from any storage type ...
struct Singles {
  using Element = float;
  static constexpr int kDepth = 1;

  static Lanes load_packed(const float* from) { return load_lanes(from); }
  static void store_packed(float* to, Lanes x) { native::store(to, x); }
  // Numbers of a row of factors that were computed here.
  static void store(float* to, Lanes x) { native::store(to, x); }
  static Lanes repeat(const float* one) { return fill(*one); }
  static Lanes multiply_add(Lanes sum, Lanes packed, Lanes repeated) {
    return native::multiply_add(packed, repeated, sum);
  }

  // A whole register of numbers, or the first `count` and zeros.
  template <class T>
  static Lanes load(const T* from, int64_t count) {
    return load_some(from, count);
  }
  static void interleave(Lanes*) {}
  static void in_order(Lanes*, int64_t) {}

  template <int count>
  static void pack_weights(const Lanes (&weights)[count], float* to) {
    for (int i = 0; i < count; ++i) store(to + i * kLanes, weights[i]);
  }
  template <int count>
  static Lanes add_weights(Lanes sums, const float* weights) {
    for (int i = 0; i < count; ++i) sums += load_lanes(weights + i * kLanes);
    return sums;
  }
};

#if defined(__AVX512BF16__)
// ... or two at a time, from bf16 numbers.
struct Pairs {
  using Element = BFloat16;
  static constexpr int kDepth = 2;

  static Lanes load_packed(const Element* from) { return (Lanes)_mm512_loadu_si512(from); }
  static void store_packed(Element* to, Lanes x) { _mm512_storeu_si512(to, (__m512i)x); }
  // Rounds as `native::store` does, in one instruction, which takes denormal numbers for zero.
  static void store(Element* to, Lanes x) {
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
  }
  static Lanes repeat(const Element* pair) {
    int32_t bits;
    std::memcpy(&bits, pair, sizeof bits);
    return (Lanes)_mm512_set1_epi32(bits);
  }
  static Lanes multiply_add(Lanes sum, Lanes packed, Lanes repeated) {
    return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)packed, (__m512bh)repeated);
  }

  // Thirty-two numbers, or the first `count` and zeros.
  static Lanes load(const BFloat16* from, int64_t count) {
    if (count >= 32) return (Lanes)_mm512_loadu_si512(from);
    return (Lanes)_mm512_maskz_loadu_epi16((1u << count) - 1, from);
  }
  // Combines two rows to pairs. As the instruction does it, the first register gets the first four
  // of each eight columns and the second register the others.
  static void interleave(Lanes* rows) {
    __m512i even = (__m512i)rows[0], odd = (__m512i)rows[1];
    rows[0] = (Lanes)_mm512_unpacklo_epi16(even, odd);
    rows[1] = (Lanes)_mm512_unpackhi_epi16(even, odd);
  }
  // The reverse, for sums.
  static void in_order(Lanes* sums, int64_t count) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    for (int64_t i = 0; i < count; i += 2) {
      __m512 low = (__m512)sums[i], high = (__m512)sums[i + 1];
      sums[i] = (Lanes)_mm512_permutex2var_ps(low, first, high);
      sums[i + 1] = (Lanes)_mm512_permutex2var_ps(low, second, high);
    }
  }

  template <int count>
  static void pack_weights(const Lanes (&weights)[count], Element* to) {
    for (int i = 0; i < count; i += 2) {
      __m512 low = (__m512)weights[i], high = (__m512)weights[i + 1];
      store_packed(to + i * kLanes, (Lanes)_mm512_cvtne2ps_pbh(high, low));
    }
  }
  template <int count>
  static Lanes add_weights(Lanes sums, const Element* weights) {
    Lanes ones = (Lanes)_mm512_set1_epi32(0x3f803f80);
    for (int i = 0; i < count; i += 2)
      sums = multiply_add(sums, load_packed(weights + i * kLanes), ones);
    return sums;
  }
};
#endif

// The input of `transpose`: registers of rows, with kDims neighbouring numbers in each lane.
template <class Products, class T>
struct Turned {
  static constexpr int kDims = Products::kDepth;

  static Lanes load(const T* from, int64_t count) { return Products::load(from, count); }
  // `count`: the number of dims to store, of kLanes rows.
  static void store(typename Products::Element* to, int64_t, int64_t, Lanes x) {
    Products::store_packed(to, x);
  }
};

// Two bf16 numbers are moved as one fp32 number: half the shuffles, and conversion to fp32 comes
// last.
template <>
struct Turned<Singles, BFloat16> {
  static constexpr int kDims = 2;

  static Lanes load(const BFloat16* from, int64_t count) {
    Lanes x = {};
    if (count >= 2 * kLanes) std::memcpy(&x, from, sizeof x);
    else std::memcpy(&x, from, count * sizeof *from);
    return x;
  }
  static void store(float* to, int64_t stride, int64_t count, Lanes pairs) {
    native::store(to, (Lanes)((IntLanes)pairs << 16));
    if (count > 1) native::store(to + stride, (Lanes)((IntLanes)pairs & -65536));
  }
};

// The kind of products for a storage type of queries.
template <class T>
struct ProductsOf {
  using Type = Singles;
};
#if defined(__AVX512BF16__)
template <>
struct ProductsOf<BFloat16> {
  using Type = Pairs;
};
#endif

}  // namespace native
