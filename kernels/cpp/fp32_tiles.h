// Rows times strips of 16 outputs where sums are fp32: y = x · Wᵀ + bias, the same bits whatever the
// number of rows.
//
// A tile keeps a few rows times a few strips of sums in registers. Few rows walk along all inputs at
// once. Many go through a piece of them, tile by tile, then through the next: the piece's weights
// stay in the first-level cache, the sums wait in memory as they are.
//
// `Weights` say how a strip's numbers are read and what rows were prepared as, `Element`. `whole(strip)`
// gives a source for products of up to kFew rows, kFewAtOnce in a tile; `piece(strip, strips, first,
// last, tiles)` for more, kRows in each of `tiles`. A source's `wide(rows)` says how many strips a tile has; its `add<rows,
// strips>(strip, x, x_stride, sums)` adds its inputs' products, in their order, to sums [rows][kGroup][16].
#pragma once
#include "fp32_rows.h"

namespace native::fp32 {

constexpr int kParts = 16 / kLanes;  // registers that hold 16 outputs
constexpr int kTileRows = 6;         // the most: 12 of 16 registers hold sums, or 24 of 32
constexpr int64_t kGroup = strips::kStrips;  // whose sums are stored together
constexpr int64_t kPieceStrips = kParts == 1 ? 4 : 1;

// Strips of a tile: as many as registers hold; a single row would wait for its own sums.
constexpr int tile_strips(int rows) {
  return kParts == 1 || rows == 1 ? 4 : rows == 2 ? 2 : 1;
}

// Returns the same address. Compilers do not know that, so they load from it again instead of
// keeping values for which there are no registers.
template <class T>
ALWAYS_INLINE T* anew(T* address) {
  asm("" : "+r"(address));
  return address;
}

// The numbers of one input for the outputs of a strip.
struct Numbers {
  Lanes of[kParts];
};

// The sums of a tile, in registers: loops over them are always unrolled.
template <int rows, int strips>
struct Sums {
  Lanes of[rows][strips][kParts];

  ALWAYS_INLINE void load(const float* from) {
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
        for (int part = 0; part < kParts; ++part)
          of[r][s][part] = load_lanes(from + (r * kGroup + s) * 16 + part * kLanes);
  }
  ALWAYS_INLINE void store(float* to) const {
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
        for (int part = 0; part < kParts; ++part)
          native::store(to + (r * kGroup + s) * 16 + part * kLanes, of[r][s][part]);
  }
  // Adds one input's products with the weights of a strip, row by row, so that one of its numbers
  // at a time takes a register.
  ALWAYS_INLINE void add(int s, const Numbers& weights, const float* x, int64_t x_stride) {
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
      Lanes number = fill((rows > 1 && strips > 1 ? anew(x) : x)[r * x_stride]);
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part)
        of[r][s][part] = multiply_add(weights.of[part], number, of[r][s][part]);
    }
  }
};

template <class Weights>
class Multiplication {
 public:
  using Element = typename Weights::Element;

  Multiplication(const strips::Problem& p, const Rows<Element>& x, const Weights& weights,
                 strips::FinishRows finish)
      : p_(p), x_(x), weights_(weights), finish_(finish) {}

  // Rows first .. last - 1 times strips first_strip .. last_strip - 1.
  void run(int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) {
    first_ = first;
    rows_ = last - first;
    sums_ = strips::scratch<float>(rows_ * kGroup * 16);
    for (int64_t s = first_strip; s < last_strip; s += kGroup)
      run_group(s, std::min<int64_t>(kGroup, last_strip - s));
  }

 private:
  void run_group(int64_t strip, int64_t strips) {
    std::fill_n(sums_, rows_ * kGroup * 16, 0.0f);
    // Depends on the whole product, since its rows were prepared for one of the two ways.
    if (p_.rows <= Weights::kFew)
      add_tiles<Weights::kFewAtOnce>(weights_.whole(strip), strips, sums_);
    else
      for (int64_t s = 0, width; s < strips; s += width) {
        width = std::min(strips - s, rows_are_long() ? kGroup : kPieceStrips);
        for (int64_t i = 0; i < num_pieces(); ++i)
          for (int64_t v = s; v < s + width; v += kPieceStrips)
            add_piece(strip, v, std::min(kPieceStrips, s + width - v), i);
      }
    finish_(p_, first_, rows_, strip, strips, sums_);
  }

  // Whether a cache holds a piece of the rows from strip to strip, but not all rows. Otherwise a
  // strip is read as a whole, in the order of memory.
  bool rows_are_long() const { return rows_ * x_.stride * int64_t(sizeof(Element)) > 1 << 20; }

  // Pieces of the inputs have about equal length, so that the next one is fetched in time.
  int64_t num_pieces() const {
    return (p_.inputs + Weights::kPieceInputs - 1) / Weights::kPieceInputs;
  }
  int64_t piece_start(int64_t piece) const {
    constexpr int64_t kUnit = 32;  // inputs, a block of panels
    return piece == num_pieces() ? p_.inputs : p_.inputs / kUnit * piece / num_pieces() * kUnit;
  }

  void add_piece(int64_t strip, int64_t place, int64_t strips, int64_t piece) {
    int64_t first = piece_start(piece), last = piece_start(piece + 1);
    add_tiles<Weights::kRows>(
        weights_.piece(strip + place, strips, first, last, num_tiles<Weights::kRows>()), strips,
        sums_ + place * 16);
  }

  template <int kMost>
  int64_t num_tiles() const {
    return (rows_ + kMost - 1) / kMost;
  }

  // Tiles have about equal height, because a low one reads as many weights as a full one.
  template <int kMost, class Source>
  void add_tiles(Source source, int64_t strips, float* sums) const {
    int64_t tiles = num_tiles<kMost>();
    for (int64_t t = 0; t < tiles; ++t) {
      int64_t row = t * rows_ / tiles, count = (t + 1) * rows_ / tiles - row;
      const Element* x = x_.data + (first_ + row) * x_.stride;
      with_constant<kMost>(count, [&](auto rows) {
        add_tile<rows>(source, strips, x, sums + row * kGroup * 16);
      });
    }
  }

  template <int rows, class Source>
  void add_tile(Source& source, int64_t strips, const Element* x, float* sums) const {
    constexpr int wide = Source::wide(rows);
    int64_t s = 0;
    for (; s + wide <= strips; s += wide)
      source.template add<rows, wide>(s, x, x_.stride, sums + s * 16);
    if constexpr (wide > 1)
      for (; s < strips; ++s) source.template add<rows, 1>(s, x, x_.stride, sums + s * 16);
  }

  strips::Problem p_;
  Rows<Element> x_;
  Weights weights_;
  strips::FinishRows finish_;
  int64_t first_ = 0, rows_ = 0;
  float* sums_ = nullptr;
};

template <class Weights>
void multiply(const strips::Problem& p, const Rows<typename Weights::Element>& x,
              const Weights& weights, strips::FinishRows finish) {
  strips::share(p, [&](int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) {
    Multiplication<Weights>(p, x, weights, finish).run(first, last, first_strip, last_strip);
  });
}

}  // namespace native::fp32
