// gelu(gate) * up, row by row.
#include "gated.h"

extern "C" void tandem_gelu_mul(int64_t dtype, const void* first, int64_t first_stride,
                                const void* second, int64_t second_stride, void* out,
                                int64_t rows, int64_t size) {
  // (1 + tanh(u)) / 2 is sigmoid(2u).
  auto gelu = [](float x) {
    return x * native::sigmoid(1.5957691f * (x + 0.044715f * x * x * x));
  };
  native::gated_mul<true>(gelu, dtype, first, first_stride, second, second_stride, out, rows,
                           size);
}
