// Linear layers over panels of block-quantised weights: multiplied in fp32, in pairs of bf16 numbers or
// in 16-bit integers where the processor has those, or in 8-bit integers.
#include "codes_in_fp32.h"
#include "codes_in_int16.h"
#include "integers.h"
#include "unpacked.h"

extern "C" void tandem_linear_panels(int64_t dtype, const void* x, int64_t x_stride, int64_t rows,
                                     int64_t blocks, const void* weight, int64_t bits,
                                     int64_t group, int64_t scale_dtype, int64_t has_min,
                                     int64_t offset, int64_t int8_activations, const float* bias,
                                     int64_t fp32_out, void* out, int64_t outputs) {
  using namespace native;
  if (rows == 0) return;
  int64_t num_panels = (outputs + kOutputs - 1) / kOutputs;
  strips::Problem p{x, x_stride, bias, out, rows, blocks * kBlock, num_panels, outputs,
                    fp32_out != 0};
  with_type(dtype, [&](auto* tag) {
    using X = std::remove_pointer_t<decltype(tag)>;
    panels::with_record(bits, group, scale_dtype, has_min, [&](auto* record) {
      using R = std::remove_pointer_t<decltype(record)>;
      auto* data = (const uint8_t*)weight;
      if (int8_activations) return panels::multiply_in_integers<R, X>(p, data, int(offset));
#if defined(TANDEM_BF16_PAIRS)
      if constexpr (std::is_same_v<X, BFloat16>)
        return strips::multiply_pairs(p, panels::Unpacked<R>(data, blocks, offset));
      else
#endif
#if defined(TANDEM_INT16_ROWS)
      if constexpr (!std::is_same_v<X, float>)
        panels::int16::multiply<R, X>(p, data, int32_t(offset));
      else
#endif
        panels::multiply_in_fp32<R, X>(p, data, float(offset));
    });
  });
}
