// Rows, rounded to 8 bits, times panels in integers.
//
// A tile is some rows times some panels of 16 outputs. Within a block of 32 inputs sums are exact
// integers; blocks are added in fp32 from the first to the last, whatever the tile. So a row's
// result does not depend on how many rows there are.
#pragma once
#include <memory>

#include "records.h"
#include "strips.h"

namespace native::panels {

using strips::Problem;

// As many rows as registers hold sums for; the results do not depend on it.
#if defined(__AVX512F__)
constexpr int kTileRows = 8;
#elif defined(__AVX2__)
constexpr int kTileRows = 2;
#else
constexpr int kTileRows = 1;
#endif

// The rows of a step in tiles of nearly equal height: a last one of a single row would be slow.
struct RowTiles {
  int64_t rows, count;

  explicit RowTiles(int64_t rows) : rows(rows), count((rows + kTileRows - 1) / kTileRows) {}
  int64_t first(int64_t tile) const { return rows * tile / count; }
};

// Activations as tiles read them. For each tile and block: codes [quads, rows] with four to an
// element, scales [rows], then for each group of weights [rows] what belongs to its offset or
// minimum: the codes' sum times -offset, or times the scale.
template <class R>
struct Activations {
  static constexpr int words = kQuads + 1 + R::groups;  // of a row and block

  RowTiles tiles;
  int64_t blocks;
  int offset;
  std::unique_ptr<int32_t[]> data;

  Activations(int64_t rows, int64_t blocks, int offset)
      : tiles(rows), blocks(blocks), offset(offset), data(new int32_t[rows * blocks * words]) {}

  const int32_t* tile(int64_t first_row) const {
    return data.get() + first_row * blocks * words;
  }

  template <class T>
  void quantise(int64_t tile, const T* x, int64_t stride) {
    int64_t first = tiles.first(tile), rows = tiles.first(tile + 1) - first;
    int32_t* out = data.get() + first * blocks * words;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t b = 0; b < blocks; ++b)
        put(Int8Block(x + (first + r) * stride + b * kBlock), out + b * rows * words + r, rows);
  }

 private:
  void put(const Int8Block& block, int32_t* out, int64_t rows) {
    for (int q = 0; q < kQuads; ++q) std::memcpy(out + q * rows, block.codes + 4 * q, 4);
    std::memcpy(out + kQuads * rows, &block.scale, 4);
    for (int g = 0; g < R::groups; ++g) {
      int32_t sum = R::groups == 1 ? block.sums[0] + block.sums[1] : block.sums[g];
      float scaled = block.scale * float(sum);
      int32_t offsets = -offset * sum;
      std::memcpy(out + (kQuads + 1 + g) * rows, R::has_min ? (void*)&scaled : &offsets, 4);
    }
  }
};

// Some rows times a panel. All loops but the one over blocks are unrolled; sums stay in registers.
// The last rows that need a panel fetch the next one.
template <class R, int kRows, bool fetches>
struct Tile {
  Vec sums[kRows] = {};

  struct Dots {
    I32x16 of[kRows];
  };

  void run(const uint8_t* record, const int32_t* x, int64_t blocks) {
    for (int64_t b = 0; b < blocks; ++b) {
      if (fetches) fetch<R::bytes>(record + blocks * R::bytes);
      Dots dots[R::groups];
#pragma GCC unroll 2
      for (int g = 0; g < R::groups; ++g) start(dots[g], x, g);
#pragma GCC unroll 4
      for (int q = 0; q < kQuads / 2; ++q) {
        U8x64 low, high;
        R::codes(record, q, low, high);
        multiply(dots[0], low, x, q);
        multiply(dots[R::groups - 1], high, x, q + kQuads / 2);
      }
#pragma GCC unroll 2
      for (int g = 0; g < R::groups; ++g) add(dots[g], record, x, g);
      record += R::bytes;
      x += kRows * Activations<R>::words;
    }
  }

 private:
  static void start(Dots& dots, const int32_t* x, int group) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      dots.of[r] = R::has_min ? I32x16{} : I32x16{} + x[(kQuads + 1 + group) * kRows + r];
  }

  static void multiply(Dots& dots, U8x64 weights, const int32_t* x, int quad) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) dots.of[r] = dot4(dots.of[r], weights, x[quad * kRows + r]);
  }

  void add(const Dots& dots, const uint8_t* record, const int32_t* x, int group) {
    const float* scales = (const float*)(x + kQuads * kRows);
    const float* scaled_sums = (const float*)(x + (kQuads + 1 + group) * kRows);
    Vec weight_scale = R::scale(record, group);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      sums[r] = multiply_add(__builtin_convertvector(dots.of[r], Vec), weight_scale * scales[r],
                             sums[r]);
    if (!R::has_min) return;
    Vec min = R::min(record, group);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      sums[r] = multiply_add(min, broadcast(scaled_sums[r]), sums[r]);
  }
};

template <class R, int kRows, bool fetches>
void run_tile(int64_t rows, const uint8_t* panel, const int32_t* x, int64_t blocks, Vec* sums) {
  if constexpr (kRows > 1)
    if (rows < kRows) return run_tile<R, kRows - 1, fetches>(rows, panel, x, blocks, sums);
  Tile<R, kRows, fetches> tile;
  tile.run(panel, x, blocks);
  std::copy_n(tile.sums, kRows, sums);
}

template <class R, class X>
void multiply(const Problem& p, const uint8_t* panels, const Activations<R>& x) {
  for_ranges(p.strips, p.rows * p.outputs * p.inputs / 4, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      for (int64_t t = 0; t < x.tiles.count; ++t) {
        int64_t first = x.tiles.first(t), rows = x.tiles.first(t + 1) - first;
        auto run = t + 1 == x.tiles.count ? run_tile<R, kTileRows, true>
                                          : run_tile<R, kTileRows, false>;
        Vec sums[kTileRows];
        run(rows, panels + panel * x.blocks * R::bytes, x.tile(first), x.blocks, sums);
        for (int64_t r = 0; r < rows; ++r) strips::finish<X>(p, first + r, panel, sums[r]);
      }
  });
}

template <class R, class X>
void multiply_in_integers(const Problem& p, const uint8_t* panels, int offset) {
  Activations<R> activations(p.rows, p.inputs / kBlock, offset);
  for_ranges(activations.tiles.count, p.rows * p.inputs, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile)
      activations.quantise(tile, (const X*)p.x, p.x_stride);
  });
  multiply<R, X>(p, panels, activations);
}

}  // namespace native::panels
