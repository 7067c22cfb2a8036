// Panels of block-quantised weights: for each 16 outputs one record per 32 inputs
// (`linear_panels/panels.py` says how they are laid out).
#pragma once
#include "int8.h"
#include "strips.h"

namespace native::panels {

constexpr int kVector = 64;  // bytes: four inputs of 16 outputs

// What a panel has for one block: scales, minima, then codes.
template <int kBits, int kGroup, class S, bool kHasMin>
struct Record {
  static constexpr int bits = kBits;
  static constexpr int groups = kBlock / kGroup;
  static constexpr bool has_min = kHasMin;
  using Scale = S;
  static constexpr int scale_bytes = groups * kLanes * sizeof(Scale);
  static constexpr int codes_at = scale_bytes * (has_min ? 2 : 1);
  static constexpr int bytes = codes_at + kBlock * kLanes * kBits / 8;

  static Vec scale(const uint8_t* record, int group) {
    return load((const Scale*)record + group * kLanes);
  }
  static Vec min(const uint8_t* record, int group) {
    return load((const Scale*)(record + scale_bytes) + group * kLanes);
  }
  // Where the low four bits of quads q (in low halves of bytes) and q + 4 (in high ones) are.
  static const uint8_t* nibbles(const uint8_t* record, int q) {
    return record + codes_at + q * kVector;
  }
  // Inputs 4q..4q+3 (low) and 16+4q..16+4q+3 (high) of all outputs.
  static void codes(const uint8_t* record, int q, U8x64& low, U8x64& high) {
    const uint8_t* at = record + codes_at;
    if (bits == 8) {
      low = load_codes(at + q * kVector);
      high = load_codes(at + (q + kQuads / 2) * kVector);
      return;
    }
    U8x64 both = load_codes(at + q * kVector);
    low = both & 15;
    high = both >> 4;
    const uint8_t* plane = at + kQuads / 2 * kVector;
    for (int bit = 4; bit < bits; ++bit, plane += kVector) {
      low = add_bit(low, plane + q * 8, 1 << bit);
      high = add_bit(high, plane + (q + kQuads / 2) * 8, 1 << bit);
    }
  }
};

// The lowest bits of each word as a number.
template <int bits>
inline Vec low_bits(Words words) {
#if defined(__AVX512F__)
  if constexpr (bits == 4) {
    // Looked up, which is one instruction; it ignores the other bits.
    const __m512 numbers =
        _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return (Vec)_mm512_permutexvar_ps((__m512i)words, numbers);
  }
#endif
  return __builtin_convertvector((I32x16)(words & ((1 << bits) - 1)), Vec);
}

// The numbers of one record.
template <class R>
class Unpacking {
 public:
  Unpacking(const uint8_t* record, float offset) : record_(record) {
    for (int g = 0; g < R::groups; ++g) {
      scales_[g] = R::scale(record, g);
      mins_[g] = R::has_min ? R::min(record, g) : scales_[g] * -offset;
    }
  }

  // Quad q of a half: four inputs of all outputs. A code times its scale is exact, and so is an
  // offset's: what is added is rounded once.
  void numbers(int half, int q, Vec (&inputs)[4]) const {
    int group = R::groups == 1 ? 0 : half;
    Words codes;
    if constexpr (R::bits == 4) {
      codes = load_words(R::nibbles(record_, q)) >> 4 * half;
    } else {
      U8x64 halves[2];
      R::codes(record_, q, halves[0], halves[1]);
      codes = (Words)halves[half];
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      inputs[i] = multiply_add(low_bits<R::bits>(codes >> 8 * i), scales_[group], mins_[group]);
  }

 private:
  const uint8_t* record_;
  Vec scales_[R::groups], mins_[R::groups];
};

// Strips that are taken out of panels: a piece at a time, or in registers if there are few rows.
template <class R, class Step>
class Unpacked {
  using X = typename Step::X;

 public:
  Unpacked(const void* panels, int64_t blocks, int64_t offset)
      : panels_((const uint8_t*)panels), blocks_(blocks), offset_(float(offset)) {}

  // Whole blocks, for the second-level cache.
  static int64_t piece_inputs(int64_t strips, bool) {
    return (128 << 10) / (strips * 16 * sizeof(X)) / kBlock * kBlock;
  }

  strips::Piece<X> piece(int64_t strip, int64_t strips, int64_t first, int64_t last) {
    int64_t stride = 16 * (last - first);
    buffer_.resize(strips * stride);
    X* to = buffer_.data();
    for (int64_t b = first / kBlock; b < last / kBlock; ++b, to += 16 * kBlock)
      for (int64_t s = 0; s < strips; ++s) {
        const uint8_t* record = at(strip + s, b);
        fetch<R::bytes>(record + strips * blocks_ * R::bytes);
        unpack(record, to + s * stride);
      }
    return {buffer_.data(), stride, false};
  }

  bool multiply_few(const strips::Problem& p, int64_t row, int64_t rows, int64_t strip,
                    int64_t strips) const {
    if constexpr (std::is_same_v<X, BFloat16>) {
      if (rows > kFew) return false;
      if (strips == strips::kStrips)
        with_rows<kFew, strips::kStrips>(p, row, rows, strip);
      else
        for (int64_t s = 0; s < strips; ++s) with_rows<kFew, 1>(p, row, rows, strip + s);
      return true;
    }
    return false;
  }

 private:
  static constexpr int kFew = 4;

  const uint8_t* at(int64_t strip, int64_t block) const {
    return panels_ + (strip * blocks_ + block) * R::bytes;
  }

  void unpack(const uint8_t* record, X* to) const {
    Unpacking<R> unpacking(record, offset_);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
#pragma GCC unroll 4
      for (int q = 0; q < kQuads / 2; ++q, to += kVector) {
        Vec inputs[4];
        unpacking.numbers(half, q, inputs);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i += Step::kInputs) Step::store(to + 16 * i, inputs + i);
      }
  }

  template <int rows, int width>
  void with_rows(const strips::Problem& p, int64_t row, int64_t count, int64_t strip) const {
    if constexpr (rows > 1)
      if (count < rows) return with_rows<rows - 1, width>(p, row, count, strip);
    const X* x = (const X*)p.x + row * p.x_stride;
    Vec sums[rows][width] = {};
    for (int64_t b = 0; b < blocks_; ++b, x += kBlock)
      add_block(std::make_index_sequence<width>{}, at(strip, b), x, p.x_stride, sums);
    for (int r = 0; r < rows; ++r)
      for (int s = 0; s < width; ++s) strips::finish<X>(p, row + r, strip + s, sums[r][s]);
  }

  // One block of neighbouring strips, whose sums stay in registers.
  template <size_t... number, int rows, int width>
  void add_block(std::index_sequence<number...>, const uint8_t* record, const X* x,
                 int64_t x_stride, Vec (&sums)[rows][width]) const {
    int64_t panel = blocks_ * R::bytes;
    const Unpacking<R> unpacking[] = {{record + number * panel, offset_}...};
    for (int s = 0; s < width; ++s) fetch<R::bytes>(record + (width + s) * panel);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
#pragma GCC unroll 1
      for (int q = 0; q < kQuads / 2; ++q, x += 4)
#pragma GCC unroll 4
        for (int s = 0; s < width; ++s) {
          Vec inputs[4];
          unpacking[s].numbers(half, q, inputs);
#pragma GCC unroll 4
          for (int i = 0; i < 4; i += Step::kInputs) {
            auto weights = Step::weights(inputs + i);
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r)
              sums[r][s] = Step::add(sums[r][s], weights, Step::row(x + r * x_stride + i));
          }
        }
  }

  const uint8_t* panels_;
  int64_t blocks_;
  float offset_;
  std::vector<X, AlignedAllocator<X>> buffer_;
};

// The formats that `panels.py` makes.
template <class Function>
void with_record(int64_t bits, int64_t group, int64_t scale_dtype, bool has_min, Function run) {
  bool half = scale_dtype == kFloat16;
  if (group == 32 && half && !has_min) {
    if (bits == 4) return run((Record<4, 32, Float16, false>*)nullptr);
    if (bits == 5) return run((Record<5, 32, Float16, false>*)nullptr);
    return run((Record<8, 32, Float16, false>*)nullptr);
  }
  if (group == 32 && half) {
    if (bits == 4) return run((Record<4, 32, Float16, true>*)nullptr);
    return run((Record<5, 32, Float16, true>*)nullptr);
  }
  if (group == 32) {
    if (bits == 4) return run((Record<4, 32, float, true>*)nullptr);
    return run((Record<5, 32, float, true>*)nullptr);
  }
  if (bits == 6) return run((Record<6, 16, float, false>*)nullptr);
  if (has_min) return run((Record<4, 16, float, true>*)nullptr);
  return run((Record<4, 16, float, false>*)nullptr);
}

}  // namespace native::panels
