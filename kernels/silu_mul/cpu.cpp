// silu(gate) * up, row by row.
#include "gated.h"

extern "C" void tandem_silu_mul(int64_t dtype, const void* gate_up, int64_t stride, void* out,
                                int64_t rows, int64_t size) {
  auto silu = [](float x) { return x * native::sigmoid(x); };
  native::gated_mul<true>(silu, dtype, gate_up, stride, out, rows, size);
}
