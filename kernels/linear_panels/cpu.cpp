// Linear layers over panels of block-quantised weights: multiplied in fp32, in pairs of bf16 numbers, in
// integers of one or two digits or of 16 bits where the processor has those, or in 8-bit integers.
#include "product.h"
#include "records.h"

extern "C" void tandem_linear_panels(int64_t dtype, const void* x, int64_t x_stride, int64_t rows,
                                     int64_t blocks, const void* weight, int64_t bits,
                                     int64_t group, int64_t scale_dtype, int64_t has_min,
                                     int64_t offset, int64_t meaning, int64_t int8_activations,
                                     const float* bias, int64_t fp32_out, void* out,
                                     int64_t outputs) {
  using namespace native;
  if (rows == 0) return;
  int64_t num_panels = (outputs + kOutputs - 1) / kOutputs;
  strips::Problem p{x, x_stride, bias, out, rows, blocks * kBlock, num_panels, outputs,
                    fp32_out != 0};
  auto of_codes = panels::Meaning(meaning);
  if (of_codes == panels::Meaning::kIq4) bits = 8;
  panels::Product product{p, dtype, (const uint8_t*)weight,
                          {bits, group, scale_dtype, has_min != 0, offset, of_codes}};
  if (int8_activations) return panels::multiply_in_int8(product);
#if defined(TANDEM_BF16_PAIRS)
  if (dtype == kBFloat16 && panels::multiplies_pairs(of_codes))
    return panels::multiply_in_pairs(product);
#endif
#if defined(TANDEM_DIGIT_ROWS)
  if (dtype == kBFloat16 && panels::is_integer(of_codes))
    return panels::multiply_in_digits(product);
#endif
#if defined(TANDEM_INT16_ROWS)
  if (dtype != kFloat32 && panels::is_integer(of_codes)) return panels::multiply_in_int16(product);
#endif
  panels::multiply_in_fp32(product);
}
