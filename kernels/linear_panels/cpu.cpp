// Linear layers over panels of block-quantised weights (`panels.py` says how they are laid out).
//
// A tile is some rows times some panels of 16 outputs. Within a block of 32 inputs sums are exact
// integers; blocks are added in fp32 from the first to the last, whatever the tile. So a row's
// result does not depend on how many rows there are.
#include <memory>

#include "int8.h"

namespace {

using native::Float16;
using native::I32x16;
using native::kBlock;
using native::kLanes;
using native::kQuads;
using native::U8x64;
using native::Vec;

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
    return native::load((const Scale*)record + group * kLanes);
  }
  static Vec min(const uint8_t* record, int group) {
    return native::load((const Scale*)(record + scale_bytes) + group * kLanes);
  }
  // Inputs 4q..4q+3 (low) and 16+4q..16+4q+3 (high) of all outputs.
  static void codes(const uint8_t* record, int q, U8x64& low, U8x64& high) {
    const uint8_t* at = record + codes_at;
    if (bits == 8) {
      low = native::load_codes(at + q * kVector);
      high = native::load_codes(at + (q + kQuads / 2) * kVector);
      return;
    }
    U8x64 nibbles = native::load_codes(at + q * kVector);
    low = nibbles & 15;
    high = nibbles >> 4;
    const uint8_t* plane = at + kQuads / 2 * kVector;
    for (int bit = 4; bit < bits; ++bit, plane += kVector) {
      low = native::add_bit(low, plane + q * 8, 1 << bit);
      high = native::add_bit(high, plane + (q + kQuads / 2) * 8, 1 << bit);
    }
  }
};

struct Output {
  void* data;
  int64_t dtype, columns;
  const float* bias;

  void write(int64_t row, int64_t panel, Vec values) const {
    int64_t first = panel * kLanes;
    size_t count = size_t(std::min<int64_t>(kLanes, columns - first));
    if (bias) {
      Vec add = {};
      std::memcpy(&add, bias + first, count * sizeof(float));
      values += add;
    }
    native::with_type(dtype, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      T* out = (T*)data + row * columns + first;
      if (count == kLanes) return native::store(out, values);
      T lanes[kLanes];
      native::store(lanes, values);
      std::memcpy(out, lanes, count * sizeof(T));
    });
  }
};

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
        put(native::Int8Block(x + (first + r) * stride + b * kBlock), out + b * rows * words + r,
            rows);
  }

 private:
  void put(const native::Int8Block& block, int32_t* out, int64_t rows) {
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
      if (fetches) native::fetch<R::bytes>(record + blocks * R::bytes);
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
    for (int r = 0; r < kRows; ++r)
      dots.of[r] = native::dot4(dots.of[r], weights, x[quad * kRows + r]);
  }

  void add(const Dots& dots, const uint8_t* record, const int32_t* x, int group) {
    const float* scales = (const float*)(x + kQuads * kRows);
    const float* scaled_sums = (const float*)(x + (kQuads + 1 + group) * kRows);
    Vec weight_scale = R::scale(record, group);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      sums[r] = native::multiply_add(__builtin_convertvector(dots.of[r], Vec), weight_scale * scales[r],
                            sums[r]);
    if (!R::has_min) return;
    Vec min = R::min(record, group);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      sums[r] = native::multiply_add(min, native::broadcast(scaled_sums[r]), sums[r]);
  }
};

template <class R, int kRows, bool fetches>
void run_tile(int64_t rows, const uint8_t* panel, const int32_t* x, int64_t blocks,
              const Output& out, int64_t first_row, int64_t number) {
  if constexpr (kRows > 1)
    if (rows < kRows)
      return run_tile<R, kRows - 1, fetches>(rows, panel, x, blocks, out, first_row, number);
  Tile<R, kRows, fetches> tile;
  tile.run(panel, x, blocks);
  for (int r = 0; r < kRows; ++r) out.write(first_row + r, number, tile.sums[r]);
}

template <class R>
void multiply(const uint8_t* panels, const Activations<R>& x, const Output& out) {
  int64_t num_panels = (out.columns + kLanes - 1) / kLanes;
#pragma omp for schedule(static)
  for (int64_t p = 0; p < num_panels; ++p)
    for (int64_t t = 0; t < x.tiles.count; ++t) {
      int64_t first = x.tiles.first(t);
      auto run = t + 1 == x.tiles.count ? run_tile<R, kTileRows, true>
                                        : run_tile<R, kTileRows, false>;
      run(x.tiles.first(t + 1) - first, panels + p * x.blocks * R::bytes, x.tile(first), x.blocks,
          out, first, p);
    }
}

// The formats that `panels.py` makes.
template <class Function>
void with_record(int64_t bits, int64_t group, int64_t scale_dtype, bool has_min, Function run) {
  bool half = scale_dtype == native::kFloat16;
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

}  // namespace

extern "C" void tandem_linear_panels(int64_t dtype, const void* x, int64_t x_stride, int64_t rows,
                                     int64_t blocks, const void* panels, int64_t bits,
                                     int64_t group, int64_t scale_dtype, int64_t has_min,
                                     int64_t offset, const float* bias, int64_t out_dtype,
                                     void* out, int64_t out_features) {
  Output output{out, out_dtype, out_features, bias};
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    with_record(bits, group, scale_dtype, has_min, [&](auto* record) {
      using R = std::remove_pointer_t<decltype(record)>;
      Activations<R> activations(rows, blocks, int(offset));
#pragma omp parallel if (native::worth_threads(rows * out_features * blocks * kQuads))
      {
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < activations.tiles.count; ++tile)
          activations.quantise(tile, (const T*)x, x_stride);
        multiply<R>((const uint8_t*)panels, activations, output);
      }
    });
  });
}
