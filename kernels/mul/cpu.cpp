// x * y, row by row.
#include "gated.h"

extern "C" void tandem_mul(int64_t dtype, const void* x, int64_t x_stride, const void* y,
                           int64_t y_stride, void* out, int64_t rows, int64_t size) {
  auto same = [](float x) { return x; };
  native::gated_mul<true>(same, dtype, x, x_stride, y, y_stride, out, rows, size);
}
