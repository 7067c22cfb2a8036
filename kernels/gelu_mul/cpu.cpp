// gelu(gate) * up, row by row.
#include "gated.h"

extern "C" void tandem_gelu_mul(int64_t dtype, const void* gate_up, int64_t stride, void* out,
                                int64_t rows, int64_t size) {
  // (1 + tanh(u)) / 2 is sigmoid(2u).
  auto gelu = [](float x) {
    return x * native::sigmoid(1.5957691f * (x + 0.044715f * x * x * x));
  };
  native::gated_mul<true>(gelu, dtype, gate_up, stride, out, rows, size);
}
