// Linear layers over panels of block-quantised weights: taken apart into strips of numbers, which
// are multiplied as plain weights are, or in 8-bit integers.
#include "integers.h"
#include "unpacked.h"

extern "C" void tandem_linear_panels(int64_t dtype, const void* x, int64_t x_stride, int64_t rows,
                                     int64_t blocks, const void* weight, int64_t bits,
                                     int64_t group, int64_t scale_dtype, int64_t has_min,
                                     int64_t offset, int64_t int8_activations, const float* bias,
                                     int64_t fp32_out, void* out, int64_t outputs) {
  using namespace native;
  int64_t num_panels = (outputs + kLanes - 1) / kLanes;
  strips::Problem p{x, x_stride, bias, out, rows, blocks * kBlock, num_panels, outputs,
                    fp32_out != 0};
  strips::with_step(dtype, [&](auto* tag) {
    using Step = std::remove_pointer_t<decltype(tag)>;
    panels::with_record(bits, group, scale_dtype, has_min, [&](auto* record) {
      using R = std::remove_pointer_t<decltype(record)>;
      auto* data = (const uint8_t*)weight;
      if (int8_activations)
        return panels::multiply_in_integers<R, typename Step::X>(p, data, int(offset));
      strips::multiply<Step>(p, panels::Unpacked<R, Step>(data, blocks, offset));
    });
  });
}
