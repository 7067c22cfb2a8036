// Products with weights in strips of 16 output features (`PackedWeight`).
#include "rows_in_fp32.h"
#include "weights_in_fp32.h"

extern "C" void tandem_linear_packed(int64_t dtype, const void* x, int64_t x_stride,
                                     const void* weight, const float* bias, void* out,
                                     int64_t rows, int64_t inputs, int64_t strips, int64_t outputs,
                                     int64_t fp32_out) {
  using namespace native;
  if (rows == 0) return;
  strips::Problem p{x, x_stride, bias, out, rows, inputs, strips, outputs, fp32_out != 0};
  with_type(dtype, [&](auto* tag) {
    using X = std::remove_pointer_t<decltype(tag)>;
    if constexpr (std::is_same_v<X, float>)
      if (fp32::RowProducts::suits(p)) return fp32::multiply_rows(p, (const float*)weight);
#if defined(TANDEM_BF16_PAIRS)
    if constexpr (std::is_same_v<X, BFloat16>)
      return strips::multiply_pairs(p, strips::InMemory(weight, inputs));
    else
#endif
      fp32::multiply(p, fp32::plain_rows<X>(p), fp32::PlainWeights<X>((const X*)weight, inputs),
                     strips::finish_rows<X>);
  });
}
