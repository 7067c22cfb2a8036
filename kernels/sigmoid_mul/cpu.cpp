// sigmoid(gate) * up, row by row.
#include "gated.h"

extern "C" void tandem_sigmoid_mul(int64_t dtype, const void* gate_up, int64_t stride, void* out,
                                   int64_t rows, int64_t size) {
  native::gated_mul<true>(native::sigmoid, dtype, gate_up, stride, out, rows, size);
}
