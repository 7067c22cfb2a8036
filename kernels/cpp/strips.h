// Multiplication of rows by strips of 16 output features: y = x · Wᵀ + bias, the same bits whatever
// the number of rows. This file multiplies bf16 pairs; fp32_tiles.h multiplies in fp32.
//
// A tile keeps a few rows times a few strips of sums in registers and goes along the inputs in
// order, with one sum per output. The inputs are cut into pieces that stay in a cache, and sums are
// stored without rounding, so neither the tile nor the piece of a row changes a bit of its result.
//
// The source of the strips is a template parameter, `Strips`: memory, or weights of few bits that
// are unpacked piece by piece.
#pragma once
#include <algorithm>

#include "pieces.h"
#include "strip_matrix_tiles.h"
#include "strip_problem.h"
#include "strip_steps.h"
#include "strip_tiles.h"

namespace native::strips {

// Strips that are stored in the form that is multiplied.
class InMemory {
  using X = BFloat16;

 public:
  static constexpr bool kInBlocks = false;  // they need not be unpacked

  InMemory(const void* weight, int64_t inputs) : weight_((const X*)weight), inputs_(inputs) {}

  // Inputs of one piece: all of them if only one tile reads it, otherwise as many as a second-level
  // cache holds.
  static int64_t piece_inputs(int64_t strips, bool one_tile) {
    return one_tile ? INT64_MAX : std::max<int64_t>(64, (256 << 10) / (strips * 16 * sizeof(X)));
  }

  Piece<X> piece(int64_t strip, int64_t, int64_t first, int64_t) const {
    return {weight_ + (strip * inputs_ + first) * 16, 16 * inputs_, true};
  }

  // Whether everything was done, without pieces.
  bool multiply_few(const Problem&, int64_t, int64_t, int64_t, int64_t) const { return false; }

 private:
  const X* weight_;
  int64_t inputs_;
};

#if defined(__AVX512BF16__)
template <class Strips>
class Multiplication {
 public:
  Multiplication(const Problem& problem, const Strips& strips) : p_(problem), strips_(strips) {}

  // Rows first .. last - 1 times strips first_strip .. last_strip - 1.
  void run(int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) {
    Tiles tiles(p_, first, last);
    for (int64_t s = first_strip; s < last_strip; s += kStrips) {
      int64_t count = std::min<int64_t>(kStrips, last_strip - s);
      if (strips_.multiply_few(p_, first, last - first, s, count)) continue;
      int64_t piece = std::min(p_.inputs, Strips::piece_inputs(count, tiles.is_one()));
      for (int64_t k = 0; k < p_.inputs; k += piece) {
        int64_t end = std::min(p_.inputs, k + piece);
        tiles.add(strips_.piece(s, count, k, end), s, count, k / 2, end / 2);
      }
    }
  }

 private:
  Problem p_;
  Strips strips_;
};
#endif

// Divides the strips among threads; where there are few strips, also the rows, of which there must
// be some.
template <class Work>
void share(const Problem& p, const Work& work) {
  int64_t elements = p.rows * p.inputs * p.outputs / 4;
  int64_t threads = worth_threads(elements) ? num_threads() : 1;
  int64_t row_parts = std::clamp<int64_t>(threads * 4 * kStrips / std::max<int64_t>(1, p.strips), 1,
                                          std::max<int64_t>(1, p.rows / 48));
  Ranges strips(p.strips, elements / row_parts, kStrips, threads);
  for_shares(strips, row_parts, [&](int64_t i, int64_t first, int64_t last) {
    work(i * p.rows / row_parts, (i + 1) * p.rows / row_parts, first, last);
  });
}

#if defined(TANDEM_BF16_PAIRS)
template <class Work, class Strips>
void multiply_with(const Problem& p, const Strips& strips) {
  share(p, [&](int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) {
    Work(p, strips).run(first, last, first_strip, last_strip);
  });
}

template <class Strips>
void multiply_pairs(const Problem& p, const Strips& strips) {
#if defined(TANDEM_MATRIX_TILES)
  if (has_matrix_tiles()) return multiply_with<TileMultiplication<Strips>>(p, strips);
#endif
#if defined(__AVX512BF16__)
  multiply_with<Multiplication<Strips>>(p, strips);
#endif
}
#endif

}  // namespace native::strips
