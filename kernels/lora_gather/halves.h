// Twice as many numbers as a register has, converted half by half. The storage type decides which
// half a number is in: two bf16 numbers in 32 bits are separated by a shift and a mask, which is
// cheaper than widening neighbours. All factors and summands are separated in the same way.
#pragma once
#include <algorithm>
#include <type_traits>

#include "products.h"

namespace native {

template <int half, class T>
ALWAYS_INLINE Lanes load_half(const T* from) {
  return load_lanes(from + half * kLanes);
}
template <int half>
ALWAYS_INLINE Lanes load_half(const BFloat16* from) {
  IntLanes pairs;
  std::memcpy(&pairs, from, sizeof pairs);
  return (Lanes)(half == 0 ? pairs << 16 : pairs & int32_t(0xffff0000));
}

// Rounds and stores them; the reverse.
ALWAYS_INLINE void store_halves(float* to, Lanes first, Lanes second) {
  store(to, first);
  store(to + kLanes, second);
}
ALWAYS_INLINE void store_rounded(Float16* to, Lanes x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) to[i] = from_float<Float16>(x[i]);
#endif
}
ALWAYS_INLINE void store_halves(Float16* to, Lanes first, Lanes second) {
  store_rounded(to, first);
  store_rounded(to + kLanes, second);
}
// Like `from_float`; the lower 16 bits are to be cut off.
typedef uint32_t WordLanes __attribute__((vector_size(4 * kLanes)));
ALWAYS_INLINE WordLanes rounded_bits(Lanes x) {
  WordLanes bits = (WordLanes)x;
  return x == x ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000;
}
ALWAYS_INLINE void store_halves(BFloat16* to, Lanes first, Lanes second) {
#if defined(__AVX512BF16__)
  const __m512i turns =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                       5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(turns, both));
#else
  WordLanes pairs = rounded_bits(first) >> 16 | (rounded_bits(second) & 0xffff0000u);
  std::memcpy(to, &pairs, sizeof pairs);
#endif
}

// The same for neighbours.
template <class T>
ALWAYS_INLINE void store_in_order(T* to, Lanes first, Lanes second) {
  store_halves(to, first, second);
}
ALWAYS_INLINE void store_in_order(BFloat16* to, Lanes first, Lanes second) {
#if defined(__AVX512BF16__)
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
#else
  store_exact(to, (Lanes)(rounded_bits(first) & 0xffff0000u));
  store_exact(to + kLanes, (Lanes)(rounded_bits(second) & 0xffff0000u));
#endif
}

// One of the halves: the place of its sums beside the other's, and the way its numbers are read.
template <int half, bool is_whole>
struct Half {
  static constexpr bool is_first = half == 0;
  static constexpr int64_t place = half * kLanes;
  int64_t count;  // numbers that both halves have

  template <class T>
  ALWAYS_INLINE Lanes load(const T* from) const {
    if constexpr (is_whole) return load_half<half>(from);
    T whole[2 * kLanes] = {};
    std::memcpy(whole, from, count * sizeof(T));
    return load_half<half>(whole);
  }
};

// Calls `work(i, half)` for numbers i .. i + 2 * kLanes - 1 of `size`, twice. The last numbers may
// be missing: they are read as zeros.
template <class Work>
ALWAYS_INLINE void in_halves(int64_t size, Work work) {
  constexpr int64_t kStep = 2 * kLanes;
  int64_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    work(i, Half<0, true>{kStep});
    work(i, Half<1, true>{kStep});
  }
  if (i == size) return;
  work(i, Half<0, false>{size - i});
  work(i, Half<1, false>{size - i});
}

}  // namespace native
