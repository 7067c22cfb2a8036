// Floats in one register of this machine: 16 with AVX-512, else 8, which compilers split where
// registers are shorter. Their number decides the order of sums over lanes, so results are equal on
// one machine, not between machines.
//
// Products that are added go through `multiply_add`: in `a * b + c` a compiler may fuse them in one
// place and not in another, and copies of one loop would round differently.
#pragma once
#include "native.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace native {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kLanes)));

// Converts integers to numbers. Compilers for 64-bit ARM convert one at a time what is longer than a
// register of its processors.
inline Lanes as_numbers(IntLanes integers) {
#if defined(__aarch64__)
  typedef float Numbers __attribute__((vector_size(16)));
  typedef int32_t Integers __attribute__((vector_size(16)));
  Integers from[kLanes / 4];
  Numbers to[kLanes / 4];
  std::memcpy(from, &integers, sizeof from);
  for (int i = 0; i < kLanes / 4; ++i) to[i] = __builtin_convertvector(from[i], Numbers);
  Lanes numbers;
  std::memcpy(&numbers, to, sizeof to);
  return numbers;
#else
  return __builtin_convertvector(integers, Lanes);
#endif
}

// Storage of packed caches: float8_e4m3fn has no infinities, its largest number is 448.
struct Float8 {
  uint8_t bits;
};

inline Lanes fill(float x) { return x - Lanes{}; }

// One word in each lane, or two in turn.
inline IntLanes repeat_word(int32_t word) { return word - IntLanes{}; }
inline IntLanes repeat_two(const void* words) {
  typedef int64_t Pairs __attribute__((vector_size(4 * kLanes)));
  int64_t both;
  std::memcpy(&both, words, sizeof both);
  return (IntLanes)(both - Pairs{});
}

inline Lanes load_lanes(const float* from) {
  Lanes x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline void store(float* to, Lanes x) { std::memcpy(to, &x, sizeof x); }

// Compilers take several instructions for conversions of halves and bytes that need only one.
inline Lanes load_lanes(const BFloat16* from) {
#if defined(__AVX512F__)
  IntLanes bits = (IntLanes)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  IntLanes bits = (IntLanes)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#else
  typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  IntLanes bits = __builtin_convertvector(halves, IntLanes);
#endif
  return (Lanes)(bits << 16);
}

inline Lanes load_lanes(const Float16* from) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
  return (Lanes)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
  Lanes x;
  for (int i = 0; i < kLanes; ++i) x[i] = to_float(from[i]);
  return x;
#endif
}

inline IntLanes widen(const int8_t* from) {
#if defined(__AVX512F__)
  return (IntLanes)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
  return (IntLanes)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
  IntLanes x;
  for (int i = 0; i < kLanes; ++i) x[i] = from[i];
  return x;
#endif
}

inline Lanes load_lanes(const int8_t* from) {
  return as_numbers(widen(from));
}

inline Lanes load_lanes(const PowerOfTwo* from) {
  IntLanes bits = (widen((const int8_t*)from) & 0xff) << 23;
  return (Lanes)(bits == 0 ? bits + 0x00400000 : bits);  // as `to_float`
}

inline Lanes load_lanes(const Float8* from) {
  IntLanes bits = widen((const int8_t*)from), magnitude = bits & 0x7f;
  // Exponent and mantissa are in their places, but the exponent's bias is still 7 instead of 127.
  Lanes number = (Lanes)((bits & 0x80) << 24 | magnitude << 20) * 0x1p120f;
  return magnitude == 0x7f ? fill(NAN) : number;
}

// The first `count` numbers, then zeros.
template <class T>
inline Lanes load_some(const T* from, int64_t count) {
  if (count >= kLanes) return load_lanes(from);
  T whole[kLanes] = {};
  std::memcpy(whole, from, count * sizeof(T));
  return load_lanes(whole);
}

// Numbers that the storage type holds exactly: nothing is rounded.
inline void store_exact(float* to, Lanes x) { store(to, x); }

inline void store_exact(BFloat16* to, Lanes x) {
  typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
#if defined(__AVX512F__)
  Halves bits = (Halves)_mm512_cvtepi32_epi16((__m512i)((IntLanes)x >> 16));
#else
  Halves bits = __builtin_convertvector((IntLanes)x >> 16, Halves);
#endif
  std::memcpy(to, &bits, sizeof bits);
}

inline void store_exact(Float16* to, Lanes x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) to[i] = Float16(x[i]);
#endif
}

inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline Lanes larger(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Lanes)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// 2^x for x <= 0, within 2e-7; never below 2^-125.
inline Lanes exp2_nonpositive(Lanes x) {
  // Adding this rounds to an integer, which is then in the sum's last bits.
  const Lanes rounder = fill(0x1.8p23f);
  // `larger` returns the second argument if it is NaN.
  x = larger(fill(-125.0f), x);
  Lanes shifted = x + rounder;
  Lanes r = x - (shifted - rounder);
  Lanes p = fill(1.327647129e-3f);
  p = multiply_add(p, r, fill(9.675540961e-3f));
  p = multiply_add(p, r, fill(5.550713092e-2f));
  p = multiply_add(p, r, fill(2.402212024e-1f));
  p = multiply_add(p, r, fill(6.931469440e-1f));
  p = multiply_add(p, r, fill(1.0f));
  return (Lanes)((IntLanes)p + ((IntLanes)shifted << 23));
}

inline Lanes tanh_lanes(Lanes x) {
  Lanes size = larger(x, -x);
  Lanes e = exp2_nonpositive(size * -2.885390082f);  // exp(-2 |x|)
  Lanes y = (1.0f - e) / (1.0f + e);
  return x < 0.0f ? -y : y;
}

#if defined(__AVX512F__)
inline Lanes swap_halves(Lanes x) {
  return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
}
inline Lanes swap_quarters(Lanes x) {
  return __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
}
inline Lanes swap_pairs(Lanes x) {
  return __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
}
inline Lanes swap_neighbours(Lanes x) {
  return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}
#else
inline Lanes swap_halves(Lanes x) { return __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3); }
inline Lanes swap_neighbours(Lanes x) {
  return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
}
inline Lanes swap_quarters(Lanes x) {
  return __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
}
#endif

// Combines the lanes of a register, in an order of their own.
template <class Combine>
inline Lanes combine_everywhere(Lanes x, Combine combine) {
  x = combine(x, swap_halves(x));
  x = combine(x, swap_quarters(x));
#if defined(__AVX512F__)
  x = combine(x, swap_pairs(x));
#endif
  return combine(x, swap_neighbours(x));
}
template <class Combine>
inline float combine_lanes(Lanes x, Combine combine) {
  return combine_everywhere(x, combine)[0];
}

inline float largest(Lanes x) { return combine_lanes(x, larger); }
inline float sum(Lanes x) {
  return combine_lanes(x, [](Lanes a, Lanes b) { return a + b; });
}

// Interleaves the lanes of two registers within each 128 bits: those of the lower or the upper
// half.
#if defined(__AVX512F__)
inline Lanes low_singles(Lanes a, Lanes b) {
  return (Lanes)_mm512_unpacklo_ps((__m512)a, (__m512)b);
}
inline Lanes high_singles(Lanes a, Lanes b) {
  return (Lanes)_mm512_unpackhi_ps((__m512)a, (__m512)b);
}
inline Lanes low_pairs(Lanes a, Lanes b) {
  return (Lanes)_mm512_unpacklo_pd((__m512d)a, (__m512d)b);
}
inline Lanes high_pairs(Lanes a, Lanes b) {
  return (Lanes)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
}
// The first and third, or the second and fourth, 128 bits of both registers.
inline Lanes even_quarters(Lanes a, Lanes b) {
  return (Lanes)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x88);
}
inline Lanes odd_quarters(Lanes a, Lanes b) {
  return (Lanes)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xdd);
}
#else
inline Lanes low_singles(Lanes a, Lanes b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
}
inline Lanes high_singles(Lanes a, Lanes b) {
  return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}
inline Lanes low_pairs(Lanes a, Lanes b) {
  return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
}
inline Lanes high_pairs(Lanes a, Lanes b) {
  return __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}
#endif

// Row i, lane j to row j, lane i.
inline void transpose(Lanes (&rows)[kLanes]) {
  Lanes t[kLanes];
  for (int i = 0; i < kLanes; i += 4) {
    Lanes a = low_singles(rows[i], rows[i + 1]), b = high_singles(rows[i], rows[i + 1]);
    Lanes c = low_singles(rows[i + 2], rows[i + 3]), d = high_singles(rows[i + 2], rows[i + 3]);
    t[i] = low_pairs(a, c);
    t[i + 1] = high_pairs(a, c);
    t[i + 2] = low_pairs(b, d);
    t[i + 3] = high_pairs(b, d);
  }
  for (int i = 0; i < 4; ++i) {
#if defined(__AVX512F__)
    Lanes a = even_quarters(t[i], t[i + 4]), b = odd_quarters(t[i], t[i + 4]);
    Lanes c = even_quarters(t[i + 8], t[i + 12]), d = odd_quarters(t[i + 8], t[i + 12]);
    rows[i] = even_quarters(a, c);
    rows[i + 4] = even_quarters(b, d);
    rows[i + 8] = odd_quarters(a, c);
    rows[i + 12] = odd_quarters(b, d);
#else
    rows[i] = __builtin_shufflevector(t[i], t[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    rows[i + 4] = __builtin_shufflevector(t[i], t[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
#endif
  }
}

}  // namespace native
