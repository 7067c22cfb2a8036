// silu(gate) * up, row by row.
#include "native.h"

extern "C" void tandem_silu_mul(int64_t dtype, const void* gate_up, int64_t stride, void* out,
                                int64_t rows, int64_t size) {
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
#pragma omp parallel for if (native::worth_threads(rows * size))
    for (int64_t row = 0; row < rows; ++row) {
      const T* gate = (const T*)gate_up + row * stride;
      const T* up = gate + size;
      T* y = (T*)out + row * size;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        float g = native::to_float(gate[i]);
        y[i] = native::from_float<T>(g * native::sigmoid(g) * native::to_float(up[i]));
      }
    }
  });
}
