// Rows times strips with the processor's matrix unit.
#pragma once
#include <algorithm>

#include "matrix_tiles.h"
#include "strip_problem.h"

namespace native::strips {

#if defined(TANDEM_MATRIX_TILES)
// Like `Tiles`. A strip's weights are the second operand without change: 16 pairs of inputs times
// 16 outputs. Sums are in tiles 0 .. 3 (rows × strips), rows in 4 and 5, weights in 6 and 7.
template <class Strips>
class TileMultiplication {
  using Weights = Piece<BFloat16>;

  // Rows times strips.
  struct Area {
    int64_t row = 0, rows = 0, strip = 0, strips = 0;
  };

 public:
  static constexpr int64_t kInputs = 32;  // inputs of one instruction
  static constexpr int64_t kFewRows = 32;  // rows that one set of tiles has sums for

  TileMultiplication(const Problem& problem, const Strips& strips) : p_(problem), strips_(strips) {}

  void run(int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) {
    if constexpr (Strips::kInBlocks)
      if (last - first <= kFewRows) return run_few(first, last - first, first_strip, last_strip);
    for (int64_t s = first_strip; s < last_strip; s += 2) {
      int64_t count = std::min<int64_t>(2, last_strip - s);
      run_rows(first, last, s, count, strips_.piece(s, count, 0, p_.inputs));
    }
    finish_waiting();
    if (configured_) tile_release();
  }

 private:
  void run_few(int64_t row, int64_t rows, int64_t first_strip, int64_t last_strip) {
    configure(rows);
    int64_t width = rows > 16 ? 2 : 4;
    for (int64_t s = first_strip; s < last_strip; s += width)
      run_blocks(row, rows, s, std::min(width, last_strip - s));
    finish_waiting();
    tile_release();
  }

  // Multiplies few rows by the weights of a block while these are in the first-level cache, but one
  // block later, because tiles wait long for numbers that were just stored.
  void run_blocks(int64_t row, int64_t rows, int64_t strip, int64_t strips) {
    constexpr int64_t kElements = 16 * kInputs, kSet = 4 * kElements;  // of a strip's block, of four
    fetch_outputs(row, rows, strip);
    auto* unpacked = scratch<BFloat16>(2 * kSet);
    const auto* x = (const BFloat16*)p_.x + row * p_.x_stride;
    int64_t blocks = p_.inputs / kInputs;
    zero_sums();
    strips_.unpack_block(strip, strips, 0, unpacked);
    for (int64_t b = 0; b < blocks; ++b, x += kInputs) {
      if (b == blocks / 2) finish_waiting();
      const auto* weights = unpacked + b % 2 * kSet;
      if (b + 1 < blocks)
        strips_.unpack_block(strip, strips, b + 1, unpacked + (b + 1) % 2 * kSet);
      if (rows > 16) add_block(x, rows, weights, kElements, strips);
      else add_wide_block(x, weights, strips);
    }
    store_sums({row, rows, strip, strips});
  }

  // Up to 16 rows times up to four strips.
  void add_wide_block(const BFloat16* x, const BFloat16* w, int64_t strips) {
    tile_load(4, x, p_.x_stride * 2);
    tile_load(6, w, 64);
    tile_add_products(0, 4, 6);
    if (strips > 1) {
      tile_load(7, w + 16 * kInputs, 64);
      tile_add_products(1, 4, 7);
    }
    if (strips > 2) {
      tile_load(6, w + 32 * kInputs, 64);
      tile_add_products(2, 4, 6);
    }
    if (strips > 3) {
      tile_load(7, w + 48 * kInputs, 64);
      tile_add_products(3, 4, 7);
    }
  }

  // Up to 32 rows times up to two strips, `stride` apart.
  void add_block(const BFloat16* x, int64_t rows, const BFloat16* w, int64_t stride, int64_t strips) {
    tile_load(4, x, p_.x_stride * 2);
    tile_load(6, w, 64);
    tile_add_products(0, 4, 6);
    if (strips > 1) {
      tile_load(7, w + stride, 64);
      tile_add_products(1, 4, 7);
    }
    if (rows > 16) {
      tile_load(5, x + 16 * p_.x_stride, p_.x_stride * 2);
      tile_add_products(2, 5, 6);
      if (strips > 1) tile_add_products(3, 5, 7);
    }
  }

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
    // A tile must have a row; with few rows the second tile is not used, or has other strips.
    for (int t : {2, 3, 5}) shapes.rows[t] = lower ? lower : upper;
    for (int t : {6, 7}) shapes.rows[t] = 16;
    tile_configure(&shapes);
  }

  void run_tiles(int64_t row, int64_t rows, int64_t strip, int64_t strips, Weights weights) {
    const auto* x = (const BFloat16*)p_.x + row * p_.x_stride;
    fetch_outputs(row, rows, strip);
    zero_sums();
    int64_t k = 0;
    auto add_until = [&](int64_t end) {
      for (; k < end; k += kInputs)
        add_block(x + k, rows, weights.data + k * 16, weights.stride, strips);
    };
    add_until(p_.inputs / 2);
    finish_waiting();
    add_until(p_.inputs);
    store_sums({row, rows, strip, strips});
  }

  void fetch_outputs(int64_t row, int64_t rows, int64_t strip) const {
    for (int64_t r = row; r < row + rows; ++r) fetch_output<BFloat16, 2>(p_, r, strip);
  }

  static void zero_sums() {
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
  }

  // Reading sums that were just stored takes long, so they are finished during the next products.
  void store_sums(Area area) {
    waiting_ = area;
    tile_store(0, sums_[0], 64);
    tile_store(1, sums_[1], 64);
    tile_store(2, sums_[2], 64);
    tile_store(3, sums_[3], 64);
  }

  void finish_waiting() {
    for (int64_t v = 0; v < waiting_.strips; ++v)
      for (int64_t r = 0; r < waiting_.rows; ++r)
        finish<BFloat16>(p_, waiting_.row + r, waiting_.strip + v, sums_[2 * (r / 16) + v][r % 16]);
    waiting_ = {};
  }

  Problem p_;
  Strips strips_;
  int64_t configured_ = 0;  // rows
  Area waiting_;            // whose sums are unfinished
  Vec sums_[4][16];
};
#endif

}  // namespace native::strips
