// Rows of integers with one or two signed digits times panels, where the processor multiplies bytes:
// sums of a group of weights are exact integers, to which its scale and minimum are applied in fp32.
// Groups are added from the first to the last.
//
// Few rows multiply codes as they are unpacked from their words, with two digits each, most of which
// are zeros. For many rows, codes are written to the cache as bytes, piece by piece, where each row
// finds those of the quads that have a second digit.
#include "digits.h"
#include "integer_sums.h"
#include "packed_codes.h"
#include "product.h"

#if defined(TANDEM_DIGIT_ROWS)
namespace native::panels {
namespace {

// Up to this many rows, unpacking codes for each few of them is faster than doing it once.
constexpr int kMostFew = fp32::kParts == 1 ? 6 : 4;

// Codes of four inputs as bytes.
template <class R>
ALWAYS_INLINE IntLanes bytes(IntLanes words, int half) {
  return R::bits == 4 ? (half ? words >> 4 : words) & 0x0f0f0f0f : words;
}

// A block of a row for few rows: words of the upper digits of all quads, of which most are zeros, and
// of the lower ones. For many rows: words of the lower digits, of the upper ones of wide quads, and
// where these quads' codes are. Then for each group of weights the scale and the factor of its
// offset or minimum: the integers' sum times -offset, or times the scale.
constexpr int kFewWords = 2 * kQuads, kManyWords = kQuads + 2 * kWide;
constexpr int kLower = kQuads;                           // for few rows
constexpr int kUpper = kQuads, kPlaces = kUpper + kWide;  // for many
template <int groups>
constexpr int kFewSize = kFewWords + 2 * groups;
template <int groups>
constexpr int kManySize = kManyWords + 2 * groups;

template <int groups>
void prepare_row(const BFloat16* x, int64_t blocks, const Format& format, bool few, int32_t* to) {
  for (int64_t b = 0; b < blocks; ++b, x += kBlock) {
    DigitBlock<groups> block(x);
    to = few ? block.store_all(to) : block.store_wide(to);
    for (int g = 0; g < groups; ++g) {
      std::memcpy(to + g, &block.scales[g], 4);
      to[groups + g] = format.factor(block.scales[g], block.sums[g]);
    }
    to += 2 * groups;
  }
}

fp32::Rows<int32_t> prepared_rows(const strips::Problem& p, const Format& format) {
  bool few = p.rows <= kMostFew;
  int groups = groups_of(format.group);
  int64_t blocks = p.inputs / kBlock, size = (few ? kFewWords : kManyWords) + 2 * groups;
  return fp32::prepared<int32_t>(p.rows, blocks * size, [&](int64_t row, int32_t* to) {
    const BFloat16* x = (const BFloat16*)p.x + row * p.x_stride;
    groups == 1 ? prepare_row<1>(x, blocks, format, few, to)
                : prepare_row<2>(x, blocks, format, few, to);
  });
}

// Records as they are stored, for few rows.
template <class R>
struct InRegisters {
  const uint8_t* data;
  int64_t blocks;

  static constexpr int wide(int) { return 1; }

  template <int rows, int>
  __attribute__((noinline)) void add(int64_t strip, const int32_t* x, int64_t x_stride,
                                     float* sums) const {
    constexpr int quads = kQuads / R::groups;
    const uint8_t* panel = data + strip * R::panel_bytes(blocks);
    for (int64_t b = 0; b < blocks; ++b, x += kFewSize<R::groups>) {
      const Block block = R::block(panel, blocks, b);
      fetch<R::bytes>(block.record + kAheadInOrder);
      Dots<rows, 1> upper, lower;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        int g = R::groups == 1 ? 0 : half;
        const int32_t* factors = x + kFewWords + g;
        if (half < R::groups)
          for_tile<rows, 1>([&](int r, int s, int part) INLINE_BODY {
            upper[r][s][part] = IntLanes{};
            lower[r][s][part] =
                R::has_min ? IntLanes{} : repeat_word(factors[r * x_stride + R::groups]);
          });
        for_quads<R, rows>([&](int q) INLINE_BODY {
          add_quad<rows>(half, q, block.record, x, x_stride, upper, lower);
        });
        if ((half + 1) * kQuads / 2 % quads != 0) continue;
        for_tile<rows, 1>([&](int r, int s, int part) INLINE_BODY {
          lower[r][s][part] += upper[r][s][part] << 8;
        });
        join<R::has_min, rows, 1>(
            sums,
            [&](int, int part, bool min) INLINE_BODY {
              return min ? R::mins(block, g, part) : R::scales(block, g, part);
            },
            factors, factors + R::groups, x_stride, lower);
      }
    }
  }

 private:
  template <int rows>
  static ALWAYS_INLINE void add_quad(int half, int q, const uint8_t* record, const int32_t* x,
                                     int64_t x_stride, Dots<rows, 1>& upper,
                                     Dots<rows, 1>& lower) {
    IntLanes codes[fp32::kParts];
    for_tile<1, 1>([&](int, int, int part) INLINE_BODY {
      codes[part] = bytes<R>(R::words(record, half, q, part), half);
    });
    const int32_t* words = x + half * kQuads / 2 + q;
    for_tile<rows, 1>([&](int r, int s, int part) INLINE_BODY {
      IntLanes &high = upper[r][s][part], &low = lower[r][s][part];
      high = dot_quads(high, codes[part], words[r * x_stride]);
      low = dot_quads(low, codes[part], words[r * x_stride + kLower]);
    });
  }
};

// Blocks with codes as bytes: scales and minima [groups][16] in fp32, then codes [8 quads][16][4].
template <int groups, bool has_min>
struct InCache {
  using Element = int32_t;
  static constexpr int kMins = groups * 16, kCodes = kMins * (has_min ? 2 : 1);
  static constexpr int kSize = kCodes + kQuads * 16;

  const int32_t* data;
  int64_t first, count;  // blocks
  Ahead ahead;

  static constexpr int wide(int) { return fp32::kPieceStrips; }

  template <int rows, int strips>
  __attribute__((noinline)) void add(int64_t strip, const int32_t* x, int64_t x_stride,
                                     float* sums) {
    const int32_t* block = data + strip * count * kSize;
    x += first * kManySize<groups>;
    // One loop, since two groups unrolled would need more registers than there are.
    for (int64_t i = 0; i < count * groups; ++i) {
      ahead.fetch();
      add_group<rows, strips>(i % groups, block, x, x_stride, sums);
      if (i % groups < groups - 1) continue;
      block += kSize;
      x += kManySize<groups>;
    }
  }

  template <class R>
  static ALWAYS_INLINE int32_t* put(IntLanes words, int half, int32_t* to) {
    words = bytes<R>(words, half);
    std::memcpy(to, &words, sizeof words);
    return to + 16;
  }

 private:
  template <int rows, int strips>
  ALWAYS_INLINE void add_group(int g, const int32_t* block, const int32_t* x, int64_t x_stride,
                               float* sums) const {
    constexpr int quads = kQuads / groups, wide = kWide / groups;
    int64_t strip = count * kSize;
    const int32_t *codes = block + kCodes, *factors = x + kManyWords + g;
    auto load = [&](const int32_t* of, int s, int part) INLINE_BODY {
      return load_ints((const uint8_t*)(of + s * strip + part * kLanes));
    };
    Dots<rows, strips> dots;
    for_tile<rows, strips>([&](int r, int s, int part) INLINE_BODY {
      const int32_t* row = x + r * x_stride + g * wide;
      IntLanes sum{};
#pragma GCC unroll 2
      for (int w = 0; w < wide; ++w)
        sum = dot_quads(sum, load(codes + row[kPlaces + w], s, part), row[kUpper + w]);
      sum <<= 8;
      dots[r][s][part] = has_min ? sum : sum + factors[r * x_stride + groups];
    });
#pragma GCC unroll 8
    for (int q = 0; q < quads; ++q) {
      const int32_t *of_quad = codes + (g * quads + q) * 16, *words = x + g * quads + q;
      IntLanes weights[strips][fp32::kParts];
      for_tile<1, strips>([&](int, int s, int part) INLINE_BODY {
        weights[s][part] = load(of_quad, s, part);
      });
      for_tile<rows, strips>([&](int r, int s, int part) INLINE_BODY {
        dots[r][s][part] = dot_quads(dots[r][s][part], weights[s][part], words[r * x_stride]);
      });
    }
    join<has_min, rows, strips>(
        sums,
        [&](int s, int part, bool min) INLINE_BODY {
          const int32_t* at = block + s * strip + g * 16 + part * kLanes;
          return load_lanes((const float*)(min ? at + kMins : at));
        },
        factors, factors + groups, x_stride, dots);
  }
};

template <class R>
struct Codes : PackedCodes<R, InRegisters<R>, InCache<R::groups, R::has_min>> {
  using Base = PackedCodes<R, InRegisters<R>, InCache<R::groups, R::has_min>>;
  using Base::Base;
  static constexpr int kFew = kMostFew;
  static constexpr int kFewAtOnce = fp32::kParts == 1 ? 6 : 3;
  static constexpr int kRows = fp32::kTileRows;
  static constexpr int64_t kPieceInputs = (kLanes == 16 ? 8 : 32) * kBlock;  // about 18 KiB
};

}  // namespace

void multiply_in_digits(const Product& product) {
  multiply_packed<int32_t, Codes>(
      product, [&](auto*) { return prepared_rows(product.problem, product.format); });
}

}  // namespace native::panels
#endif
