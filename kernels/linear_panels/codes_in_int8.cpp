// Rows, rounded to 8 bits, times panels in integers.
//
// A tile is some rows times some panels of 16 outputs. Within a block of 32 inputs sums are exact
// integers; blocks are added in fp32 from the first to the last in every tile. So a row's result
// does not depend on the number of rows.
#include <memory>

#include "product.h"
#include "records.h"
#include "strips.h"

namespace native::panels {
namespace {

using strips::Problem;

// As many rows as registers hold sums for; the results do not depend on this number.
#if defined(__AVX512F__)
constexpr int kTileRows = 8;
#elif defined(__AVX2__)
constexpr int kTileRows = 2;
#else
constexpr int kTileRows = 1;
#endif

// The rows of a step in tiles of nearly equal height, because a last tile of a single row would be
// slow.
struct RowTiles {
  int64_t rows, count;

  explicit RowTiles(int64_t rows) : rows(rows), count((rows + kTileRows - 1) / kTileRows) {}
  int64_t first(int64_t tile) const { return rows * tile / count; }
};

// Activations in the order in which tiles read them. For each tile and block: codes [quads, rows]
// with four to an element, scales [rows], then for each group of weights [rows] the factor of its
// offset or minimum: the codes' sum times -offset, or times the scale.
struct Activations {
  RowTiles tiles;
  int64_t blocks;
  Format format;
  int groups;
  int words;  // of a row and block
  std::unique_ptr<int32_t[]> data;

  Activations(int64_t rows, int64_t blocks, const Format& format)
      : tiles(rows),
        blocks(blocks),
        format(format),
        groups(groups_of(format.group)),
        words(words_of(groups)),
        data(new int32_t[rows * blocks * words]) {}

  static constexpr int words_of(int groups) { return kQuads + 1 + groups; }

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
  void put(const Int8Block& block, int32_t* out, int64_t rows) const {
    for (int q = 0; q < kQuads; ++q) std::memcpy(out + q * rows, block.codes + 4 * q, 4);
    std::memcpy(out + kQuads * rows, &block.scale, 4);
    out += (kQuads + 1) * rows;
    if (groups == 1) {
      *out = format.factor(block.scale, block.sums[0] + block.sums[1]);
    } else {
      out[0] = format.factor(block.scale, block.sums[0]);
      out[rows] = format.factor(block.scale, block.sums[1]);
    }
  }
};

// Multiplies some rows by a panel. All loops but the one over blocks are unrolled; sums stay in
// registers. The last rows that need a panel fetch what lies `ahead` bytes behind it, or nothing if
// that is zero.
template <class R, int kRows>
struct Tile {
  Vec sums[kRows] = {};

  struct Dots {
    I32x16 of[kRows];
  };

  void run(const uint8_t* panel, const int32_t* x, int64_t blocks, int64_t ahead) {
    for (int64_t b = 0; b < blocks; ++b) {
      const Block block = R::block(panel, blocks, b);
      if (ahead != 0) R::fetch_block(block + ahead);
      Dots dots[R::groups];
#pragma GCC unroll 2
      for (int g = 0; g < R::groups; ++g) start(dots[g], x, g);
#pragma GCC unroll 4
      for (int q = 0; q < kQuads / 2; ++q) {
        U8x64 low, high;
        R::codes(block.record, q, low, high);
        multiply(dots[0], low, x, q);
        multiply(dots[R::groups - 1], high, x, q + kQuads / 2);
      }
#pragma GCC unroll 2
      for (int g = 0; g < R::groups; ++g) add(dots[g], block, x, g);
      x += kRows * Activations::words_of(R::groups);
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
    for (int r = 0; r < kRows; ++r) dots.of[r] = dot4<R::bits>(dots.of[r], weights, x[quad * kRows + r]);
  }

  void add(const Dots& dots, Block block, const int32_t* x, int group) {
    const float* scales = (const float*)(x + kQuads * kRows);
    const float* scaled_sums = (const float*)(x + (kQuads + 1 + group) * kRows);
    Vec weight_scale = R::scale(block, group);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      sums[r] = multiply_add(__builtin_convertvector(dots.of[r], Vec), weight_scale * scales[r],
                             sums[r]);
    if (!R::has_min) return;
    Vec min = R::min(block, group);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      sums[r] = multiply_add(min, broadcast(scaled_sums[r]), sums[r]);
  }
};

template <class R, int kRows>
void run_tile(int64_t rows, const uint8_t* panel, const int32_t* x, int64_t blocks, int64_t ahead,
              Vec* sums) {
  if constexpr (kRows > 1)
    if (rows < kRows) return run_tile<R, kRows - 1>(rows, panel, x, blocks, ahead, sums);
  Tile<R, kRows> tile;
  tile.run(panel, x, blocks, ahead);
  std::copy_n(tile.sums, kRows, sums);
}

template <class R, class X>
void multiply(const Problem& p, const uint8_t* panels, const Activations& x) {
  // Several tiles find the panel in the cache, and the last one has time to fetch the next.
  int64_t ahead = x.tiles.count == 1 ? kAheadInOrder : R::panel_bytes(x.blocks);
  for_ranges(p.strips, p.rows * p.outputs * p.inputs / 4, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      for (int64_t t = 0; t < x.tiles.count; ++t) {
        int64_t first = x.tiles.first(t), rows = x.tiles.first(t + 1) - first;
        bool is_last = t + 1 == x.tiles.count;
        Vec sums[kTileRows];
        run_tile<R, kTileRows>(rows, panels + panel * R::panel_bytes(x.blocks), x.tile(first),
                               x.blocks, is_last ? ahead : 0, sums);
        for (int64_t r = 0; r < rows; ++r) strips::finish<X>(p, first + r, panel, sums[r]);
      }
  });
}

}  // namespace

void multiply_in_int8(const Product& product) {
  const Problem& p = product.problem;
  Activations activations(p.rows, p.inputs / kBlock, product.format);
  with_type(product.dtype, [&](auto* tag) {
    using X = std::remove_pointer_t<decltype(tag)>;
    for_ranges(activations.tiles.count, p.rows * p.inputs, [&](int64_t first, int64_t last) {
      for (int64_t tile = first; tile < last; ++tile)
        activations.quantise(tile, (const X*)p.x, p.x_stride);
    });
    with_gguf_record(product.format, [&](auto* record) {
      multiply<std::remove_pointer_t<decltype(record)>, X>(p, product.panels, activations);
    });
  });
}

}  // namespace native::panels
