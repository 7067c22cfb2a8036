// sigmoid(gate) * up, row by row.
#include "gated.h"

extern "C" void tandem_sigmoid_mul(int64_t dtype, const void* first, int64_t first_stride,
                                   const void* second, int64_t second_stride, void* out,
                                   int64_t rows, int64_t size) {
  native::gated_mul<true>(native::sigmoid, dtype, first, first_stride, second, second_stride, out,
                          rows, size);
}
