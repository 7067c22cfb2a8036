// Causal convolution over a few positions, with the last inputs of each sequence as its state.
#include "pieces.h"

namespace {

constexpr int64_t kMostWidth = 8, kBlock = 64, kPerPiece = 512;

// A block of at most kBlock channels of one sequence. Inputs lie in a ring, so that none moves. The
// width is a constant, so that loops over weights and states of neighbouring channels vectorise.
template <int64_t width, class T>
void convolve(const T* x, int64_t x_stride, const float* weight, const float* bias, const T* read,
              T* write, T* out, int64_t out_stride, int64_t rows, int64_t channels, bool silu) {
  float inputs[width][kBlock] = {}, weights[width][kBlock] = {}, shift[kBlock] = {};
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t j = 0; j < width; ++j) weights[j][c] = weight[c * width + j];
  if (read)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t j = 0; j + 1 < width; ++j)
        inputs[j][c] = native::to_float(read[c * (width - 1) + j]);
  if (bias) std::copy(bias, bias + channels, shift);
  for (int64_t t = 0; t < rows; ++t) {
    float* newest = inputs[(t + width - 1) % width];
    float sum[kBlock];
    for (int64_t c = 0; c < channels; ++c) newest[c] = native::to_float(x[t * x_stride + c]);
    std::copy(shift, shift + kBlock, sum);
    for (int64_t j = 0; j < width; ++j) {
      const float* input = inputs[(t + j) % width];
      for (int64_t c = 0; c < kBlock; ++c) sum[c] += input[c] * weights[j][c];
    }
    if (silu)
      for (int64_t c = 0; c < kBlock; ++c) sum[c] *= native::sigmoid(sum[c]);
    for (int64_t c = 0; c < channels; ++c) out[t * out_stride + c] = native::from_float<T>(sum[c]);
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t j = 0; j + 1 < width; ++j)
      write[c * (width - 1) + j] = native::from_float<T>(inputs[(rows + j) % width][c]);
}

// Calls `function` with the width as a constant.
template <int64_t width = 2, class Function>
void with_width(int64_t wanted, Function function) {
  if (wanted == width) return function(std::integral_constant<int64_t, width>());
  if constexpr (width < kMostWidth) with_width<width + 1>(wanted, function);
}

}  // namespace

extern "C" void tandem_short_conv(int64_t dtype, const void* x, int64_t x_stride,
                                  const float* weight, const float* bias, void* states,
                                  const int32_t* offsets, const int32_t* reads,
                                  const int32_t* writes, void* out, int64_t sequences,
                                  int64_t channels, int64_t width, int64_t silu) {
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    int64_t parts = (channels + kPerPiece - 1) / kPerPiece, size = channels * (width - 1);
    int64_t threads = native::worth_threads(offsets[sequences] * channels * width)
                          ? native::num_threads() : 1;
    auto held = [&](int64_t slot, int64_t c) { return (T*)states + slot * size + c * (width - 1); };
    with_width(width, [&](auto constant) {
      native::for_pieces(sequences * parts, threads, [&](int64_t piece) {
        int64_t b = piece / parts, c = piece % parts * kPerPiece, first = offsets[b];
        if (first == offsets[b + 1]) return;
        for (int64_t end = std::min(c + kPerPiece, channels); c < end; c += kBlock)
          convolve<decltype(constant)::value>(
              (const T*)x + first * x_stride + c, x_stride, weight + c * width,
              bias ? bias + c : nullptr, reads[b] < 0 ? nullptr : held(reads[b], c),
              held(writes[b], c), (T*)out + first * channels + c, channels, offsets[b + 1] - first,
              std::min(kBlock, end - c), silu != 0);
      });
    });
  });
}
