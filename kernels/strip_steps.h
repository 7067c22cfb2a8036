// One step along the inputs of a product by strips, for each storage type.
#pragma once
#include "native.h"
#include "vec.h"

namespace native::strips {

// What to load of a strip and of a row.
template <class T>
struct Single {
  using X = T;
  static constexpr int kInputs = 1;
  static Vec weights(const X* w) { return load(w); }
  static Vec weights(const Vec* inputs) {
    if constexpr (std::is_same_v<X, float>) return *inputs;
    X rounded[16];
    native::store(rounded, *inputs);
    return load(rounded);
  }
  static void store(X* to, const Vec* inputs) { native::store(to, *inputs); }
  static Vec row(const X* x) { return broadcast(to_float(*x)); }
  static Vec add(Vec sum, Vec w, Vec x) { return multiply_add(w, x, sum); }
};

// Two neighbouring inputs of each output lie side by side.
struct Pairs {
  using X = BFloat16;
  static constexpr int kInputs = 2;
#if defined(__AVX512BF16__)
  static __m512bh weights(const X* w) { return (__m512bh)_mm512_loadu_si512(w); }
  static __m512bh weights(const Vec* inputs) {
    const __m512i turns =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512bh both = _mm512_cvtne2ps_pbh((__m512)inputs[1], (__m512)inputs[0]);
    return (__m512bh)_mm512_permutexvar_epi16(turns, (__m512i)both);
  }
  static void store(X* to, const Vec* inputs) {
    _mm512_storeu_si512(to, (__m512i)weights(inputs));
  }
  static __m512bh row(const X* x) {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static Vec add(Vec sum, __m512bh w, __m512bh x) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, w, x);
  }
#else
  struct Pair {
    Vec low, high;
  };
  static Pair weights(const X* w) {
    Words words = load_words(w);
    return {(Vec)(words << 16), (Vec)(words & 0xffff0000u)};
  }
  static Pair weights(const Vec* inputs) {
    return {(Vec)(rounded(inputs[0]) & 0xffff0000u), (Vec)(rounded(inputs[1]) & 0xffff0000u)};
  }
  static void store(X* to, const Vec* inputs) {
    Words pairs = rounded(inputs[0]) >> 16 | (rounded(inputs[1]) & 0xffff0000u);
    std::memcpy(to, &pairs, sizeof pairs);
  }
  static Pair row(const X* x) {
    return {broadcast(to_float(x[0])), broadcast(to_float(x[1]))};
  }
  static Vec add(Vec sum, Pair w, Pair x) {
    return multiply_add(w.high, x.high, multiply_add(w.low, x.low, sum));
  }

 private:
  // To the nearest bf16, which are the upper halves; not for NaN.
  static Words rounded(Vec x) {
    Words bits = (Words)x;
    return bits + 0x7fff + (bits >> 16 & 1);
  }
#endif
};

}  // namespace native::strips
