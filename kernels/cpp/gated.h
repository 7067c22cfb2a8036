// The rows of a gated MLP: two halves in, `activation(gate) * up` out.
#pragma once
#include "pieces.h"

namespace native {

// Takes the arguments after the activation in kernels/shared/gated.py: `halves` has `stride`
// elements per row, `size` in each half. The gate is the first half or the second.
template <bool gate_first, class Activation>
inline void gated_mul(Activation activation, int64_t dtype, const void* halves, int64_t stride,
                      void* out, int64_t rows, int64_t size) {
  with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    for_ranges(rows, rows * size, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* first = (const T*)halves + row * stride;
        const T* gate = gate_first ? first : first + size;
        const T* up = gate_first ? first + size : first;
        T* y = (T*)out + row * size;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i)
          y[i] = from_float<T>(activation(to_float(gate[i])) * to_float(up[i]));
      }
    });
  });
}

}  // namespace native
