// Plain weights of any storage type, converted to fp32 where they are multiplied.
#pragma once
#include "fp32_tiles.h"

namespace native::fp32 {

// The weights that a tile reads, inputs first .. last - 1 of strips [inputs][16], or of bf16
// [inputs / 2][16][2].
template <class X>
struct PlainSource {
  static constexpr int kStep = std::is_same_v<X, BFloat16> ? 2 : 1;

  const X* data;  // of the first strip's first input
  int64_t strip_size, first, last;
  int64_t ahead;  // distance of what is fetched: needed soon, or the next piece

  static constexpr int wide(int rows) { return tile_strips(rows); }

  template <int rows, int strips>
  __attribute__((noinline)) void add(int64_t strip, const float* x, int64_t x_stride,
                                     float* to) const {
    const X* w = data + strip * strip_size;
    Sums<rows, strips> sums;
    sums.load(to);
    for (int64_t k = first; k < last; k += kStep, w += 16 * kStep) {
#pragma GCC unroll 4
      for (int s = 0; s < strips; ++s) {
        const X* at = w + s * strip_size;
        __builtin_prefetch(at + ahead, 0, 2);
        sums.add(s, numbers<0>(at), x + k, x_stride);
        if constexpr (kStep == 2) sums.add(s, numbers<1>(anew(at)), x + k + 1, x_stride);
      }
    }
    sums.store(to);
  }

 private:
  // The weights of input `i` of a step.
  template <int i>
  static ALWAYS_INLINE Numbers numbers(const X* w) {
    Numbers result;
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part, w += kLanes * kStep) {
      if constexpr (kStep == 1) {
        result.of[part] = load_lanes(w);
      } else {
        IntLanes pairs;
        std::memcpy(&pairs, w, sizeof pairs);
        result.of[part] = (Lanes)(i == 0 ? pairs << 16 : pairs & int32_t(0xffff0000));
      }
    }
    return result;
  }
};

// The weights of a product, see fp32_tiles.h.
template <class X>
class PlainWeights {
 public:
  using Element = float;
  // Splitting bf16 pairs needs registers.
  static constexpr int kRows = kParts == 1 || PlainSource<X>::kStep == 1 ? kTileRows : kTileRows - 1;
  static constexpr int kFew = kRows, kFewAtOnce = kRows;
  static constexpr int64_t kPieceInputs = kLanes == 16 ? 256 : 512;  // 16 or 32 KiB in bf16

  PlainWeights(const X* weight, int64_t inputs) : weight_(weight), inputs_(inputs) {}

  PlainSource<X> whole(int64_t strip) const { return source(strip, 0, inputs_, kSoon); }
  PlainSource<X> piece(int64_t strip, int64_t, int64_t first, int64_t last, int64_t) const {
    return source(strip, first, last, last - first);
  }

 private:
  static constexpr int64_t kSoon = 128;  // inputs, 4 KiB of a strip in bf16

  PlainSource<X> source(int64_t strip, int64_t first, int64_t last, int64_t ahead) const {
    return {weight_ + (strip * inputs_ + first) * 16, inputs_ * 16, first, last, ahead * 16};
  }

  const X* weight_;
  int64_t inputs_;
};

}  // namespace native::fp32
