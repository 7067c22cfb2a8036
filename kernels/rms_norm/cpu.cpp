// RMS normalisation of rows, with an optional residual that is added first, in place.
#include "pieces.h"

namespace {

template <class T, class W>
void norm_row(const T* x, T* residual, const W* weight, T* out, int64_t size, float eps,
              float offset) {
  float sum = 0;
  if (residual) {
    for (int64_t i = 0; i < size; ++i)
      residual[i] = native::from_float<T>(native::to_float(x[i]) + native::to_float(residual[i]));
    x = residual;
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) {
    float value = native::to_float(x[i]);
    sum += value * value;
  }
  float scale = 1.0f / std::sqrt(sum / float(size) + eps);
  for (int64_t i = 0; i < size; ++i)
    out[i] = native::from_float<T>(native::to_float(x[i]) * scale *
                                   (offset + native::to_float(weight[i])));
}

}  // namespace

extern "C" void tandem_rms_norm(int64_t dtype, const void* x, int64_t x_stride, void* residual,
                                int64_t residual_stride, int64_t weight_dtype,
                                const void* weight, void* out,
                                int64_t rows, int64_t size, float eps, float offset) {
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto norm_rows = [&](auto* weights) {
      native::for_ranges(rows, rows * size, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
          norm_row((const T*)x + row * x_stride,
                   residual ? (T*)residual + row * residual_stride : nullptr, weights,
                   (T*)out + row * size, size, eps, offset);
      });
    };
    if (weight_dtype == native::kFloat32) return norm_rows((const float*)weight);
    norm_rows((const T*)weight);
  });
}
