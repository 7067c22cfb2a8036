// Rows times panels where arithmetic is fp32: codes are converted to numbers and multiplied, and a
// group's scale and minimum are applied to its sums. Few rows unpack codes from their words in
// registers; for many rows unpacked codes are written to the cache first.
//
// A code stays at its place in its word, which makes its number a power of two too large, exactly;
// rows are prepared with the inverse. So a register of weights takes three instructions: and,
// convert, multiply-add. Within a group products are summed in the order of the inputs, then groups
// are.
#include "fp32_tiles.h"
#include "packed_codes.h"
#include "product.h"

namespace native::panels {
namespace {

// Converts a record's codes to numbers. Arguments are constants once loops are unrolled.
template <bool is_nibble>
struct Cut {
  static constexpr int width = is_nibble ? 4 : 8;

  // The code's first bit in the word.
  static constexpr int place(int half, int i) { return 8 * i + (is_nibble ? 4 * half : 0); }
  // The uppermost code is shifted down, since its number might be negative at its place.
  static constexpr bool is_uppermost(int half, int i) { return place(half, i) + width == 32; }
  static constexpr float inverse(int half, int i) {
    return is_uppermost(half, i) ? 1.0f : 1.0f / float(1u << place(half, i));
  }
  static ALWAYS_INLINE Lanes number(IntLanes words, int half, int i) {
    typedef uint32_t Unsigned __attribute__((vector_size(sizeof words)));
    if (is_uppermost(half, i))
      words = (IntLanes)((Unsigned)words >> (32 - width));
    else
      words &= ((1 << width) - 1) << place(half, i);
    return as_numbers(words);
  }
};

template <class R>
ALWAYS_INLINE Lanes number_at(IntLanes words, int half, int i) {
  using Own = Cut<R::bits == 4>;
  if constexpr (is_integer(R::meaning))
    return Own::number(words, half, i);
  else
    return number_of<R::meaning, Lanes>(words >> Own::place(half, i));
}

// Rows as blocks: 32 numbers times the inverse of their code's place, then for each group of
// weights the factor of its minimum or offset: the numbers' sum, or that times -offset.
template <int groups>
constexpr int kRowBlock = kBlock + groups;

template <class X>
fp32::Rows<float> prepared_rows(const strips::Problem& p, const Format& format) {
  constexpr int kHalf = kBlock / 2;
  float inverses[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    int half = i / kHalf, place = i % 4;
    inverses[i] = !is_integer(format.meaning) ? 1.0f
                  : format.bits == 4          ? Cut<true>::inverse(half, place)
                                              : Cut<false>::inverse(half, place);
  }
  int groups = groups_of(format.group);
  int64_t blocks = p.inputs / kBlock, size = kBlock + groups;
  return fp32::prepared<float>(p.rows, blocks * size, [&](int64_t row, float* to) {
    const X* x = (const X*)p.x + row * p.x_stride;
    for (int64_t b = 0; b < blocks; ++b, x += kBlock, to += size) {
      float sums[2];
      for (int half = 0; half < 2; ++half) {
        Lanes all{};
        for (int i = half * kHalf; i < (half + 1) * kHalf; i += kLanes) {
          Lanes numbers = load_lanes(x + i);
          all += numbers;
          store(to + i, numbers * load_lanes(inverses + i));
        }
        sums[half] = sum(all);
      }
      if (groups == 1) sums[0] += sums[1];
      for (int g = 0; g < groups; ++g)
        to[kBlock + g] = format.has_min ? sums[g] : -float(format.offset) * sums[g];
    }
  });
}

// A tile's sums of one group, and the way they are added to the total.
template <bool has_min, int rows, int strips>
struct GroupSums : fp32::Sums<rows, strips> {
  static constexpr int kRows = rows;

  ALWAYS_INLINE void begin(const float* of_group, int64_t x_stride) {
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
        for (int part = 0; part < fp32::kParts; ++part)
          this->of[r][s][part] = has_min ? Lanes{} : fill(of_group[r * x_stride]);
  }
  using fp32::Sums<rows, strips>::add;
  // Adds one input's products with the weights of all strips, which are in registers beside the
  // sums.
  ALWAYS_INLINE void add(const fp32::Numbers (&weights)[strips], const float* x,
                         int64_t x_stride) {
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
      Lanes number = fill(x[r * x_stride]);
#pragma GCC unroll 4
      for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
        for (int part = 0; part < fp32::kParts; ++part)
          this->of[r][s][part] = multiply_add(weights[s].of[part], number, this->of[r][s][part]);
    }
  }

  // Adds the sums of the outputs of one register of strip `s`.
  ALWAYS_INLINE void join(fp32::Sums<rows, strips>& total, int s, int part, const float* of_group,
                          int64_t x_stride, Lanes scale, Lanes min) const {
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
      Lanes& to = total.of[r][s][part];
      to = multiply_add(this->of[r][s][part], scale, to);
      if (has_min) to = multiply_add(min, fill(of_group[r * x_stride]), to);
    }
  }
  // The same for a total in memory, [rows][kGroup][16].
  ALWAYS_INLINE void join(float* total, int s, int part, const float* of_group, int64_t x_stride,
                          Lanes scale, Lanes min) const {
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
      float* at = total + (r * fp32::kGroup + s) * 16 + part * kLanes;
      Lanes to = multiply_add(this->of[r][s][part], scale, load_lanes(at));
      if (has_min) to = multiply_add(min, fill(of_group[r * x_stride]), to);
      store(at, to);
    }
  }
};

// Records as they are stored.
template <class R>
struct InRegisters {
  const uint8_t* data;
  int64_t blocks;

  static constexpr int wide(int) { return 1; }

  template <int rows, int>
  __attribute__((noinline)) void add(int64_t strip, const float* x, int64_t x_stride,
                                     float* sums) const {
    const uint8_t* panel = data + strip * R::panel_bytes(blocks);
    fp32::Sums<rows, 1> total;
    total.load(sums);
    for (int64_t b = 0; b < blocks; ++b, x += kRowBlock<R::groups>) {
      const Block block = R::block(panel, blocks, b);
      fetch<R::bytes>(block.record + kAheadInOrder);
      GroupSums<R::has_min, rows, 1> group;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const float* of_group = x + kBlock + (R::groups == 1 ? 0 : half);
        if (half < R::groups) group.begin(of_group, x_stride);
        add_half(half, block.record, x + half * kBlock / 2, x_stride, group);
        if (half < 2 - R::groups) continue;
#pragma GCC unroll 2
        for (int part = 0; part < fp32::kParts; ++part)
          join(half, block, part, of_group, x_stride, group, total);
      }
    }
    total.store(sums);
  }

 private:
  template <class Group>
  static ALWAYS_INLINE void add_half(int half, const uint8_t* record, const float* x,
                                     int64_t x_stride, Group& group) {
    for_quads<R, Group::kRows>([&](int q) INLINE_BODY {
      IntLanes words[fp32::kParts];
#pragma GCC unroll 2
      for (int part = 0; part < fp32::kParts; ++part) words[part] = R::words(record, half, q, part);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        fp32::Numbers weights;
#pragma GCC unroll 2
        for (int part = 0; part < fp32::kParts; ++part)
          weights.of[part] = number_at<R>(words[part], half, i);
        group.add(0, weights, x + 4 * q + i, x_stride);
      }
    });
  }

  template <class Group, class Total>
  static ALWAYS_INLINE void join(int half, Block block, int part, const float* of_group,
                                 int64_t x_stride, const Group& group, Total& total) {
    int g = R::groups == 1 ? 0 : half;
    Lanes scale = R::scales(block, g, part);
    group.join(total, 0, part, of_group, x_stride, scale,
               R::has_min ? R::mins(block, g, part) : scale);
  }
};

// Blocks whose codes are numbers already: scales and minima [groups][16], then [32 inputs][16].
template <int groups, bool has_min>
struct InCache {
  using Element = float;
  static constexpr int kMins = groups * 16, kCodes = kMins * (has_min ? 2 : 1);
  static constexpr int kSize = kCodes + kBlock * 16;

  const float* data;
  int64_t first, count;  // blocks
  Ahead ahead;

  static constexpr int wide(int rows) { return fp32::tile_strips(rows); }

  template <int rows, int strips>
  __attribute__((noinline)) void add(int64_t strip, const float* x, int64_t x_stride,
                                     float* sums) {
    const float* block = data + strip * count * kSize;
    x += first * kRowBlock<groups>;
    for (int64_t b = 0; b < count; ++b, block += kSize, x += kRowBlock<groups>)
      for (int g = 0; g < groups; ++g) {
        ahead.fetch();
        add_group<rows, strips>(g, block, x, x_stride, sums);
      }
  }

  template <class R>
  static ALWAYS_INLINE float* put(IntLanes words, int half, float* to) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i, to += 16) store(to, number_at<R>(words, half, i));
    return to;
  }

 private:
  template <int rows, int strips>
  ALWAYS_INLINE void add_group(int g, const float* block, const float* x, int64_t x_stride,
                               float* total) const {
    constexpr int inputs = kBlock / groups;
    int64_t strip = count * kSize;
    const float *of_group = x + kBlock + g, *numbers = block + kCodes + g * inputs * 16;
    GroupSums<has_min, rows, strips> sums;
    sums.begin(of_group, x_stride);
#pragma GCC unroll 2
    for (int i = 0; i < inputs; ++i) {
      fp32::Numbers weights[strips];
#pragma GCC unroll 4
      for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
        for (int part = 0; part < fp32::kParts; ++part)
          weights[s].of[part] = load_lanes(numbers + s * strip + i * 16 + part * kLanes);
      sums.add(weights, x + g * inputs + i, x_stride);
    }
    // Otherwise compilers would keep it on the stack, too.
    total = fp32::anew(total);
#pragma GCC unroll 4
    for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
      for (int part = 0; part < fp32::kParts; ++part) {
        const float* scale = block + s * strip + g * 16 + part * kLanes;
        sums.join(total, s, part, of_group, x_stride, load_lanes(scale),
                  load_lanes(has_min ? scale + kMins : scale));
      }
  }
};

template <class R>
struct Codes : PackedCodes<R, InRegisters<R>, InCache<R::groups, R::has_min>> {
  using Base = PackedCodes<R, InRegisters<R>, InCache<R::groups, R::has_min>>;
  using Base::Base;
  // Up to this many rows, unpacking codes for each four of them is faster than doing it once.
  static constexpr int kFew = 12, kFewAtOnce = 4, kRows = fp32::kTileRows;
  static constexpr int64_t kPieceInputs = (kLanes == 16 ? 2 : 8) * kBlock;  // about 17 KiB
};

}  // namespace

void multiply_in_fp32(const Product& product) {
  multiply_packed<float, Codes>(product, [&](auto* tag) {
    using X = std::remove_pointer_t<decltype(tag)>;
    return prepared_rows<X>(product.problem, product.format);
  });
}

}  // namespace native::panels
