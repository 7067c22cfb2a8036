// The rows of a gated MLP: two halves in, `activation(gate) * up` out.
#pragma once
#include "native.h"

namespace native {

// As the arguments after the activation in kernels/gated.py: `halves` has `stride` elements per row,
// `size` of each half. The gate is the first half, or the second.
template <bool gate_first, class Activation>
inline void gated_mul(Activation activation, int64_t dtype, const void* halves, int64_t stride,
                      void* out, int64_t rows, int64_t size) {
  with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
#pragma omp parallel for if (worth_threads(rows * size))
    for (int64_t row = 0; row < rows; ++row) {
      const T* first = (const T*)halves + row * stride;
      const T* gate = gate_first ? first : first + size;
      const T* up = gate_first ? first + size : first;
      T* y = (T*)out + row * size;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i)
        y[i] = from_float<T>(activation(to_float(gate[i])) * to_float(up[i]));
    }
  });
}

}  // namespace native
