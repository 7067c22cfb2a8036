// silu(gate) * up, row by row.
#include "gated.h"

extern "C" void tandem_silu_mul(int64_t dtype, const void* first, int64_t first_stride,
                                const void* second, int64_t second_stride, void* out,
                                int64_t rows, int64_t size) {
  auto silu = [](float x) { return x * native::sigmoid(x); };
  native::gated_mul<true>(silu, dtype, first, first_stride, second, second_stride, out, rows,
                           size);
}
