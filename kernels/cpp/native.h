// The common code of the C++ operations: storage types, conversions, a vectorisable exp, and a rule
// for when threads pay. Plain C interface, no PyTorch headers: all operations compile in seconds.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace native {

// Codes of the storage types, as kernels/native.py passes them.
enum Dtype : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct BFloat16 {
  uint16_t bits;
};
using Float16 = _Float16;
// A scale of weights: an exponent plus 127 (float8_e8m0fnu), never 255.
struct PowerOfTwo {
  uint8_t exponent;
};

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline float to_float(Float16 x) { return float(x); }
inline float to_float(PowerOfTwo x) {
  uint32_t bits = x.exponent ? uint32_t(x.exponent) << 23 : 0x00400000;  // 2^-127 is denormal
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

template <class T>
inline T from_float(float x);
template <>
inline float from_float<float>(float x) { return x; }
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  // Round to nearest even; NaN stays NaN.
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  uint32_t quiet = (bits >> 16) | 0x40;
  return {uint16_t((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded)};
}
template <>
inline Float16 from_float<Float16>(float x) { return Float16(x); }

// exp(x) for x <= 0 within 2 ulp: 2^n * p(r), Cephes' polynomial. Branch-free, so loops vectorise.
inline float exp_nonpositive(float x) {
  x = x < -87.0f ? -87.0f : x;
  float n = std::floor(x * 1.44269504f + 0.5f);
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = (int32_t(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return p * scale;
}

// exp(-|x|) never overflows; the quotient for negative x uses it, too.
inline float sigmoid(float x) {
  float e = exp_nonpositive(x < 0 ? x : -x);
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A parallel region costs a few microseconds, and far more when the cores have other work. One
// variable of the whole library, so that tests can have small cases divided, too.
extern "C" {
inline int64_t tandem_serial_below = 1 << 16;
}
inline bool worth_threads(int64_t num_elements) { return num_elements >= tandem_serial_below; }

// The number of threads that work together; torch.set_num_threads() sets it. Declared here because it
// is all that is used of OpenMP's library, whose header does not come with every compiler.
extern "C" int omp_get_max_threads();
inline int64_t num_threads() { return omp_get_max_threads(); }

// Calls `function` with a null pointer of the storage type that `dtype` names.
template <class Function>
inline void with_type(int64_t dtype, Function function) {
  if (dtype == kFloat32) function(static_cast<float*>(nullptr));
  if (dtype == kBFloat16) function(static_cast<BFloat16*>(nullptr));
  if (dtype == kFloat16) function(static_cast<Float16*>(nullptr));
}

}  // namespace native
