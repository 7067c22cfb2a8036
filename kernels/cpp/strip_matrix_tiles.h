// Rows times strips with the processor's matrix unit.
#pragma once
#include <algorithm>

#include "matrix_tiles.h"
#include "strip_problem.h"

namespace native::strips {

#if defined(TANDEM_MATRIX_TILES)
// As `Tiles` does. A strip's weights are its second operand as they are: 16 pairs of
// inputs times 16 outputs. Sums in tiles 0 .. 3 (rows × strips), rows in 4 and 5, weights in 6 and 7.
template <class Strips>
class TileMultiplication {
  using Weights = Piece<BFloat16>;

 public:
  static constexpr int64_t kInputs = 32;  // of one instruction

  TileMultiplication(const Problem& problem, const Strips& strips) : p_(problem), strips_(strips) {}

  void run(int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) {
    for (int64_t s = first_strip; s < last_strip; s += 2) {
      int64_t count = std::min<int64_t>(2, last_strip - s);
      run_rows(first, last, s, count, strips_.piece(s, count, 0, p_.inputs));
    }
    if (configured_) tile_release();
  }

 private:
  void run_rows(int64_t first, int64_t last, int64_t strip, int64_t strips, Weights weights) {
    for (int64_t row = first; row < last; row += 32) {
      int64_t rows = std::min<int64_t>(32, last - row);
      configure(rows);
      run_tiles(row, rows, strip, strips, weights);
    }
  }

  void configure(int64_t rows) {
    if (rows == configured_) return;
    configured_ = rows;
    TileShapes shapes;
    for (int t = 0; t < 8; ++t) shapes.row_bytes[t] = 64;
    uint8_t upper = uint8_t(std::min<int64_t>(16, rows)), lower = uint8_t(rows - upper);
    for (int t : {0, 1, 4}) shapes.rows[t] = upper;
    // A tile must have a row; the second one is then not used.
    for (int t : {2, 3, 5}) shapes.rows[t] = std::max<uint8_t>(1, lower);
    for (int t : {6, 7}) shapes.rows[t] = 16;
    tile_configure(&shapes);
  }

  void run_tiles(int64_t row, int64_t rows, int64_t strip, int64_t strips, Weights weights) {
    const auto* x = (const BFloat16*)p_.x + row * p_.x_stride;
    const auto* w = weights.data;
    int64_t x_bytes = p_.x_stride * 2;
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    for (int64_t k = 0; k < p_.inputs; k += kInputs) {
      tile_load(4, x + k, x_bytes);
      tile_load(6, w + k * 16, 64);
      tile_add_products(0, 4, 6);
      if (strips > 1) {
        tile_load(7, w + k * 16 + weights.stride, 64);
        tile_add_products(1, 4, 7);
      }
      if (rows > 16) {
        tile_load(5, x + k + 16 * p_.x_stride, x_bytes);
        tile_add_products(2, 5, 6);
        if (strips > 1) tile_add_products(3, 5, 7);
      }
    }
    tile_store(0, sums_[0], 64);
    tile_store(1, sums_[1], 64);
    tile_store(2, sums_[2], 64);
    tile_store(3, sums_[3], 64);
    for (int64_t v = 0; v < strips; ++v)
      for (int64_t r = 0; r < rows; ++r)
        finish<BFloat16>(p_, row + r, strip + v, sums_[2 * (r / 16) + v][r % 16]);
  }

  Problem p_;
  Strips strips_;
  int64_t configured_ = 0;  // rows
  Vec sums_[4][16];
};
#endif

}  // namespace native::strips
