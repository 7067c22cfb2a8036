// The bits of floats: their order, and the integers between them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Integers that sort as floats do, the two zeros equal.
inline int32_t order_key(float x) {
  int32_t bits = int32_t(bits_of(x + 0.0f));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

// The least float at or above an integer: for integer-valued w, w >= m iff w >= at_least(m).
inline float at_least(int64_t m) {
  float x = float(m);
  return int64_t(x) < m ? std::nextafter(x, kInfinity) : x;
}

}  // namespace
