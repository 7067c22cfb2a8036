// The rows of a gate: two halves in, `activation(gate) * up` out.
#pragma once
#include "pieces.h"

namespace native {

// Takes the arguments after the activation from kernels/shared/gated.py. Each half has its own
// stride between rows. The gate is the first half or the second.
template <bool gate_first, class Activation>
inline void gated_mul(Activation activation, int64_t dtype, const void* first, int64_t first_stride,
                      const void* second, int64_t second_stride, void* out, int64_t rows,
                      int64_t size) {
  with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    for_ranges(rows, rows * size, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T *one = (const T*)first + row * first_stride;
        const T *other = (const T*)second + row * second_stride;
        const T *gate = gate_first ? one : other, *up = gate_first ? other : one;
        T* y = (T*)out + row * size;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i)
          y[i] = from_float<T>(activation(to_float(gate[i])) * to_float(up[i]));
      }
    });
  });
}

}  // namespace native
