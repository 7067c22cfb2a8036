// Rows of 16-bit integers times panels, where their dot products take fewer instructions than those
// of fp32 numbers: the sums of a group of weights are exact integers, to which its scale and
// minimum are applied in fp32. Groups are added from the first to the last.
//
// Few rows multiply codes as they are unpacked from their words, many after codes were written to
// the cache as 16-bit numbers, piece by piece.
#include "int16.h"
#include "integer_sums.h"
#include "packed_codes.h"
#include "product.h"

#if defined(TANDEM_INT16_ROWS)
namespace native::panels {
namespace {

constexpr int kWords = kBlock / 2;  // of a block of a row: pairs of integers

// Up to this many rows, unpacking codes for each few of them is faster than doing it once.
constexpr int most_few(int64_t bits) { return bits == 5 || bits == 6 ? 3 : 8; }

// Codes of four inputs as two registers of pairs of 16-bit numbers: the first and the third, the
// second and the fourth.
template <class R>
ALWAYS_INLINE void take_pairs(IntLanes words, int half, IntLanes (&pairs)[2]) {
  if (R::bits == 4 && half) words >>= 4;
  constexpr int32_t kCode = R::bits == 4 ? 0x000f000f : 0x00ff00ff;
  pairs[0] = words & kCode;
  pairs[1] = (words >> 8) & kCode;
}

// Rows as blocks: words, the scale, then for each group of weights the factor of its offset or
// minimum: the integers' sum times -offset, or times the scale.
template <int groups>
constexpr int kRowBlock = kWords + 1 + groups;

template <class X>
fp32::Rows<int32_t> prepared_rows(const strips::Problem& p, const Format& format) {
  int groups = groups_of(format.group);
  int64_t blocks = p.inputs / kBlock, size = kWords + 1 + groups;
  return fp32::prepared<int32_t>(p.rows, blocks * size, [&](int64_t row, int32_t* to) {
    const X* x = (const X*)p.x + row * p.x_stride;
    for (int64_t b = 0; b < blocks; ++b, x += kBlock, to += size) {
      Int16Block block(x);
      block.store_pairs(to);
      std::memcpy(to + kWords, &block.scale, 4);
      float sums[2] = {block.sum_of_half(0), block.sum_of_half(1)};
      if (groups == 1) sums[0] += sums[1];
      for (int g = 0; g < groups; ++g)
        to[kWords + 1 + g] = format.factor(block.scale, int32_t(sums[g]));
    }
  });
}

// The numbers of one block of a tile's rows.
template <int groups>
struct RowBlock {
  const int32_t* at;
  int64_t stride;

  int32_t word(int r, int i) const { return at[r * stride + i]; }
  int32_t offset(int r, int g) const { return factors(g)[r * stride]; }
  const int32_t* scales() const { return at + kWords; }
  // Of a group's offset or minimum.
  const int32_t* factors(int g) const { return at + kWords + 1 + g; }
};

// Records as they are stored.
template <class R>
struct InRegisters {
  const uint8_t* data;
  int64_t blocks;

  static constexpr int wide(int) { return 1; }

  template <int rows, int>
  __attribute__((noinline)) void add(int64_t strip, const int32_t* x, int64_t x_stride,
                                     float* sums) const {
    const uint8_t* panel = data + strip * R::panel_bytes(blocks);
    for (int64_t b = 0; b < blocks; ++b, x += kRowBlock<R::groups>) {
      const Block block = R::block(panel, blocks, b);
      fetch<R::bytes>(block.record + kAheadInOrder);
      RowBlock<R::groups> row{x, x_stride};
      Dots<rows, 1> dots;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        if (half < R::groups)
          for_tile<rows, 1>([&](int r, int s, int part) INLINE_BODY {
            dots[r][s][part] = R::has_min ? IntLanes{} : IntLanes{} + row.offset(r, half);
          });
        for_quads<R, rows>([&](int q) INLINE_BODY {
          add_quad(half, q, block.record, row, dots);
        });
        if (half < 2 - R::groups) continue;
        int g = R::groups == 1 ? 0 : half;
        join<R::has_min, rows, 1>(
            sums,
            [&](int, int part, bool min) INLINE_BODY {
              return min ? R::mins(block, g, part) : R::scales(block, g, part);
            },
            row.scales(), row.factors(g), row.stride, dots);
      }
    }
  }

 private:
  template <int rows>
  static ALWAYS_INLINE void add_quad(int half, int q, const uint8_t* record,
                                     const RowBlock<R::groups>& row, Dots<rows, 1>& dots) {
    int quad = half * kQuads / 2 + q;
    for_tile<1, 1>([&](int, int s, int part) INLINE_BODY {
      IntLanes pairs[2];
      take_pairs<R>(R::words(record, half, q, part), half, pairs);
#pragma GCC unroll 6
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i)
          dots[r][s][part] = dot_pairs(dots[r][s][part], pairs[i], row.word(r, 2 * quad + i));
    });
  }
};

// Blocks whose codes are 16-bit numbers: scales and minima [groups][16] in fp32, then pairs of codes
// [16][16 outputs].
template <int groups, bool has_min>
struct InCache {
  using Element = int32_t;
  static constexpr int kMins = groups * 16, kCodes = kMins * (has_min ? 2 : 1);
  static constexpr int kSize = kCodes + kWords * 16;

  const int32_t* data;
  int64_t first, count;  // blocks
  Ahead ahead;

  static constexpr int wide(int) { return fp32::kPieceStrips; }

  template <int rows, int strips>
  __attribute__((noinline)) void add(int64_t strip, const int32_t* x, int64_t x_stride,
                                     float* sums) {
    const int32_t* block = data + strip * count * kSize;
    x += first * kRowBlock<groups>;
    for (int64_t b = 0; b < count; ++b, block += kSize, x += kRowBlock<groups>)
      for (int g = 0; g < groups; ++g) {
        ahead.fetch();
        add_group<rows, strips>(g, block, RowBlock<groups>{x, x_stride}, sums);
      }
  }

  template <class R>
  static ALWAYS_INLINE int32_t* put(IntLanes words, int half, int32_t* to) {
    IntLanes pairs[2];
    take_pairs<R>(words, half, pairs);
    std::memcpy(to, &pairs[0], sizeof pairs[0]);
    std::memcpy(to + 16, &pairs[1], sizeof pairs[1]);
    return to + 32;
  }

 private:
  template <int rows, int strips>
  ALWAYS_INLINE void add_group(int g, const int32_t* block, const RowBlock<groups>& row,
                               float* sums) const {
    constexpr int pairs = kWords / groups;
    int64_t strip = count * kSize;
    const int32_t* codes = block + kCodes + g * pairs * 16;
    Dots<rows, strips> dots;
    for_tile<rows, strips>([&](int r, int s, int part) INLINE_BODY {
      dots[r][s][part] = has_min ? IntLanes{} : IntLanes{} + row.offset(r, g);
    });
#pragma GCC unroll 2
    for (int i = 0; i < pairs; ++i) {
      IntLanes weights[strips][fp32::kParts];
      for_tile<1, strips>([&](int, int s, int part) INLINE_BODY {
        weights[s][part] = load_ints((const uint8_t*)(codes + s * strip + i * 16 + part * kLanes));
      });
      for_tile<rows, strips>([&](int r, int s, int part) INLINE_BODY {
        dots[r][s][part] = dot_pairs(dots[r][s][part], weights[s][part], row.word(r, g * pairs + i));
      });
    }
    join<has_min, rows, strips>(
        sums,
        [&](int s, int part, bool min) INLINE_BODY {
          const int32_t* at = block + s * strip + g * 16 + part * kLanes;
          return load_lanes((const float*)(min ? at + kMins : at));
        },
        row.scales(), row.factors(g), row.stride, dots);
  }
};

template <class R>
struct Codes : PackedCodes<R, InRegisters<R>, InCache<R::groups, R::has_min>> {
  using Base = PackedCodes<R, InRegisters<R>, InCache<R::groups, R::has_min>>;
  using Base::Base;
  static constexpr int kFew = most_few(R::bits);
  static constexpr int kFewAtOnce = fp32::kParts == 1 ? 6 : 4;
  static constexpr int kRows = fp32::kTileRows;
  static constexpr int64_t kPieceInputs = (kLanes == 16 ? 4 : 16) * kBlock;  // about 17 KiB
};

}  // namespace

void multiply_in_int16(const Product& product) {
  multiply_packed<int32_t, Codes>(product, [&](auto* tag) {
    using X = std::remove_pointer_t<decltype(tag)>;
    return prepared_rows<X>(product.problem, product.format);
  });
}

}  // namespace native::panels
#endif
