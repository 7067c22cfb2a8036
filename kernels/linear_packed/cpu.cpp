// Weights lie in strips of 16 output features (`PackedWeight`), which are multiplied as they are.
#include "strips.h"

extern "C" void tandem_linear_packed(int64_t dtype, const void* x, int64_t x_stride,
                                     const void* weight, const float* bias, void* out,
                                     int64_t rows, int64_t inputs, int64_t strips, int64_t outputs,
                                     int64_t fp32_out) {
  native::strips::Problem p{x, x_stride, bias, out, rows, inputs, strips, outputs, fp32_out != 0};
  native::strips::with_step(dtype, [&](auto* tag) {
    using Step = std::remove_pointer_t<decltype(tag)>;
    using Strips = native::strips::InMemory<typename Step::X>;
    native::strips::multiply<Step>(p, Strips(weight, inputs));
  });
}
