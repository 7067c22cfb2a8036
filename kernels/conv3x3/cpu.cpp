// 3x3 convolution in fp32 by Winograd's F(4x4, 3x3), which needs 36 multiplications where the
// definition has 144, and in bf16 by F(2x2, 3x3), 16 where it has 36: in a larger tile the sums,
// which are rounded to bf16, would lose four times as much.
#include "winograd.h"

namespace {

using native::Lanes;
using native::multiply_add;

struct InFloat32 {
  using X = float;
  using Products = native::Singles;
  static constexpr int kTile = 4, kPatch = 6;
  static constexpr int kWide = native::kLanes == 16 ? 2 : 1;
  static constexpr int kRows = native::kLanes == 16 ? 12 : 6;  // sums take 24 or 12 registers
  static constexpr int64_t kBlock = 24;                        // with 192 inputs 650 KB of sums

  static ALWAYS_INLINE void take_apart(const Lanes (&d)[kPatch], Lanes (&sums)[kPatch]) {
    Lanes four = native::fill(4.0f), minus_five = native::fill(-5.0f);
    Lanes even = multiply_add(native::fill(-4.0f), d[2], d[4]);
    Lanes odd = multiply_add(native::fill(-4.0f), d[1], d[3]);
    Lanes near = d[4] - d[2], far = d[3] - d[1];
    sums[0] = multiply_add(four, d[0], multiply_add(minus_five, d[2], d[4]));
    sums[1] = even + odd;
    sums[2] = even - odd;
    sums[3] = multiply_add(native::fill(2.0f), far, near);
    sums[4] = multiply_add(native::fill(-2.0f), far, near);
    sums[5] = multiply_add(four, d[1], multiply_add(minus_five, d[3], d[5]));
  }

  static ALWAYS_INLINE void put_together(const Lanes (&m)[kPatch], Lanes (&results)[kTile]) {
    Lanes one = m[1] + m[2], other = m[1] - m[2];
    Lanes two = m[3] + m[4], half = m[3] - m[4];
    results[0] = m[0] + one + two;
    results[1] = multiply_add(native::fill(2.0f), half, other);
    results[2] = multiply_add(native::fill(4.0f), two, one);
    results[3] = multiply_add(native::fill(8.0f), half, other) + m[5];
  }
};

#if defined(__AVX512BF16__)
struct InBFloat16 {
  using X = native::BFloat16;
  using Products = native::Pairs;
  static constexpr int kTile = 2, kPatch = 4;
  static constexpr int kWide = 4, kRows = 6;  // sums take 24 registers
  static constexpr int64_t kBlock = 96;       // with 320 inputs 1 MB of sums, 400 KB of products

  static ALWAYS_INLINE void take_apart(const Lanes (&d)[kPatch], Lanes (&sums)[kPatch]) {
    sums[0] = d[0] - d[2];
    sums[1] = d[1] + d[2];
    sums[2] = d[2] - d[1];
    sums[3] = d[1] - d[3];
  }

  static ALWAYS_INLINE void put_together(const Lanes (&m)[kPatch], Lanes (&results)[kTile]) {
    results[0] = m[0] + m[1] + m[2];
    results[1] = m[1] - m[2] - m[3];
  }
};
#endif

template <class Method>
void convolve(const void* x, int64_t x_stride, const void* weight, const float* bias,
              const float* slopes, const void* addend, int64_t addend_stride, float scale, void* out,
              int64_t out_stride, int64_t maps, int64_t height, int64_t width, int64_t inputs,
              int64_t padded_inputs, int64_t outputs, int64_t strips) {
  using X = typename Method::X;
  native::winograd::Problem<X> problem{
      (const X*)x, x_stride, weight, inputs, padded_inputs, outputs, strips, bias, slopes,
      (const X*)addend, addend_stride, scale, (X*)out, out_stride, maps, height, width};
  native::winograd::Convolution<Method>(problem).run();
}

}  // namespace

extern "C" void tandem_conv3x3(int64_t dtype, const void* x, int64_t x_stride, const void* weight,
                               const float* bias, const float* slopes, const void* addend,
                               int64_t addend_stride, float scale, void* out, int64_t out_stride,
                               int64_t maps, int64_t height, int64_t width, int64_t inputs,
                               int64_t padded_inputs, int64_t outputs, int64_t strips) {
  auto run = convolve<InFloat32>;
#if defined(__AVX512BF16__)
  if (dtype == native::kBFloat16) run = convolve<InBFloat16>;
#endif
  run(x, x_stride, weight, bias, slopes, addend, addend_stride, scale, out, out_stride, maps, height,
      width, inputs, padded_inputs, outputs, strips);
}
