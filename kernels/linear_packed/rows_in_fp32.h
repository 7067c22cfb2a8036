// Many rows in fp32, read in place, times weights in fp32, without copies or stored sums.
//
// A tile multiplies many rows by few strips and goes along all inputs: its weights stay in the
// first-level cache from tile to tile. Sums have the bits of those in fp32_tiles.h, with the inputs
// in order.
#pragma once
#include "fp32_tiles.h"

namespace native::fp32 {

constexpr int kManyRows = kParts == 1 ? 12 : 6;  // of a tile: sums take 24 of 32 registers, or 12 of 16
constexpr int kManyStrips = kParts == 1 ? 2 : 1;
constexpr int64_t kBlockBytes = 96 << 10;  // of rows that go along all strips together

class RowProducts {
 public:
  explicit RowProducts(const strips::Problem& p, const float* weight) : p_(p), weight_(weight) {}

  // Whether tiles are high, weights of a tile stay in a cache, and so do rows: not if all rows need
  // the same places of it.
  static bool suits(const strips::Problem& p) {
    return p.rows > kTileRows && p.inputs <= 2048 && p.x_stride % 1024 != 0;
  }

  // Rows first .. last - 1 times strips first_strip .. last_strip - 1.
  void run(int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) const {
    int64_t most = std::max<int64_t>(kManyRows, kBlockBytes / (p_.inputs * sizeof(float)));
    int64_t blocks = (last - first + most - 1) / most;
    for (int64_t b = 0; b < blocks; ++b) {
      int64_t from = first + b * (last - first) / blocks, to = first + (b + 1) * (last - first) / blocks;
      int64_t strip = first_strip;
      for (; strip + kManyStrips <= last_strip; strip += kManyStrips)
        add_tiles<kManyStrips>(from, to, strip);
      for (; strip < last_strip; ++strip) add_tiles<1>(from, to, strip);
    }
  }

 private:
  // Tiles have about equal height.
  template <int strips>
  void add_tiles(int64_t first, int64_t last, int64_t strip) const {
    int64_t rows = last - first, tiles = (rows + kManyRows - 1) / kManyRows;
    for (int64_t t = 0; t < tiles; ++t) {
      int64_t row = t * rows / tiles, count = (t + 1) * rows / tiles - row;
      with_constant<kManyRows>(count, [&](auto height) INLINE_BODY {
        multiply<height, strips>(first + row, strip);
      });
    }
  }

  template <int rows, int strips>
  ALWAYS_INLINE void multiply(int64_t row, int64_t strip) const {
    const float* x = (const float*)p_.x + row * p_.x_stride;
    const float* weight = weight_ + strip * p_.inputs * 16;
    Lanes sums[rows][strips][kParts] = {};
    for (int64_t k = 0; k < p_.inputs; ++k) {
      Lanes weights[strips][kParts];
#pragma GCC unroll 2
      for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
        for (int part = 0; part < kParts; ++part)
          weights[s][part] = load_lanes(weight + (s * p_.inputs + k) * 16 + part * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r) {
        Lanes number = fill(x[r * p_.x_stride + k]);
#pragma GCC unroll 2
        for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
          for (int part = 0; part < kParts; ++part)
            sums[r][s][part] = multiply_add(weights[s][part], number, sums[r][s][part]);
      }
    }
#pragma GCC unroll 2
    for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        int64_t at = (strip + s) * 16 + part * kLanes, columns = p_.outputs - at;
        if (columns <= 0) continue;
        float* to = (float*)p_.out + row * p_.outputs + at;
        Lanes bias = p_.bias ? load_some(p_.bias + at, columns) : Lanes{};
#pragma GCC unroll 12
        for (int r = 0; r < rows; ++r) {
          Lanes sum = p_.bias ? sums[r][s][part] + bias : sums[r][s][part];
          if (columns >= kLanes)
            native::store(to + r * p_.outputs, sum);
          else
            std::memcpy(to + r * p_.outputs, &sum, columns * sizeof(float));
        }
      }
  }

  const strips::Problem& p_;
  const float* weight_;
};

inline void multiply_rows(const strips::Problem& p, const float* weight) {
  strips::share(p, [&](int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) {
    RowProducts(p, weight).run(first, last, first_strip, last_strip);
  });
}

}  // namespace native::fp32
