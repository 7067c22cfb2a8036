// One step along the inputs of a product of bf16 numbers: a pair of inputs, whose weights lie side by
// side for each output.
#pragma once
#include "matrix_tiles.h"
#include "vec.h"

// Whether bf16 numbers are multiplied in pairs; otherwise all arithmetic is fp32.
#if defined(__AVX512BF16__) || defined(TANDEM_MATRIX_TILES)
#define TANDEM_BF16_PAIRS 1
#endif

namespace native::strips {

#if defined(TANDEM_BF16_PAIRS)
struct Pairs {
#if defined(__AVX512BF16__)
  static __m512bh weights(const BFloat16* w) { return (__m512bh)_mm512_loadu_si512(w); }
  static __m512bh weights(const Vec* inputs) {
    const __m512i turns =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512bh both = _mm512_cvtne2ps_pbh((__m512)inputs[1], (__m512)inputs[0]);
    return (__m512bh)_mm512_permutexvar_epi16(turns, (__m512i)both);
  }
  static void store(BFloat16* to, const Vec* inputs) {
    _mm512_storeu_si512(to, (__m512i)weights(inputs));
  }
  static __m512bh row(const BFloat16* x) {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static Vec add(Vec sum, __m512bh w, __m512bh x) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, w, x);
  }
#else
  static void store(BFloat16* to, const Vec* inputs) {
    Words pairs = rounded(inputs[0]) >> 16 | (rounded(inputs[1]) & 0xffff0000u);
    std::memcpy(to, &pairs, sizeof pairs);
  }

 private:
  // Rounds to the nearest bf16, which are the upper halves; not for NaN.
  static Words rounded(Vec x) {
    Words bits = (Words)x;
    return bits + 0x7fff + (bits >> 16 & 1);
  }
#endif
};
#endif

}  // namespace native::strips
