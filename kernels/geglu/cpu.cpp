// up * gelu(gate), row by row.
#include "native.h"

namespace {

// Within 1.5e-7 of the normal distribution's share below x: Abramowitz and Stegun 7.1.26.
inline float normal_cdf(float x) {
  float z = (x < 0 ? -x : x) * 0.70710678f;
  float t = 1.0f / (1.0f + 0.3275911f * z);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  float tail = 0.5f * p * t * native::exp_nonpositive(-z * z);
  return x < 0 ? tail : 1.0f - tail;
}

}  // namespace

extern "C" void tandem_geglu(int64_t dtype, const void* up_gate, int64_t stride, void* out,
                             int64_t rows, int64_t size) {
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
#pragma omp parallel for if (native::worth_threads(rows * size))
    for (int64_t row = 0; row < rows; ++row) {
      const T* up = (const T*)up_gate + row * stride;
      const T* gate = up + size;
      T* y = (T*)out + row * size;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        float g = native::to_float(gate[i]);
        y[i] = native::from_float<T>(native::to_float(up[i]) * g * normal_cdf(g));
      }
    }
  });
}
