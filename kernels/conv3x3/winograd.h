// 3x3 convolution of channels-last maps by Winograd's method (Winograd 1980; Lavin and Gray 2015):
// patches of cells, which overlap by two, and kernels are transformed to sums, one for each of their
// places, whose products are those of a tile of results.
//
// A piece of work is a block of tiles and a part of the outputs: the patches' sums, then for a few
// strips of outputs at a time the products of matrices at all places (tiles times inputs times
// outputs) and the results with all operations that follow. A result depends on its map alone: sums
// go through the inputs in order, whichever tiles share a block.
#pragma once
#include "pieces.h"
#include "products.h"
#include "vec.h"

#include <vector>

namespace native::winograd {

constexpr int64_t kStrip = 16;  // outputs whose weights lie side by side
// Distance between the numbers of two places: at multiples of 4 KB all would need the same lines of
// a cache.
constexpr int64_t kGap = 32;

// X: the numbers of maps.
template <class X>
struct Problem {
  const X* x;
  int64_t x_stride;  // from cell to cell
  const void* weight;  // [places, strips, inputs, 16] of the method's elements
  int64_t inputs, padded_inputs, outputs, strips;
  const float *bias, *slopes;  // of the strips' outputs
  const X* addend;
  int64_t addend_stride;
  float scale;
  X* out;
  int64_t out_stride, maps, height, width;
};

// A method has the type X of its maps' numbers and the Products of its sums; the sizes kTile of a
// tile of results, kPatch = kTile + 2 of the cells that these need, kRows tiles times kWide strips
// that are multiplied in registers, and kBlock tiles of a piece; `take_apart` and `put_together` for
// one axis.
template <class Method>
class Convolution {
  using X = typename Method::X;
  using Products = typename Method::Products;
  using Element = typename Products::Element;
  static constexpr int kTile = Method::kTile, kPatch = Method::kPatch, kPlaces = kPatch * kPatch;
  static constexpr int kParts = kStrip / kLanes;  // registers of a strip
  static constexpr int kRows = Method::kRows, kWide = Method::kWide;
  static constexpr int64_t kBlock = Method::kBlock;

 public:
  explicit Convolution(const Problem<X>& p)
      : p_(p),
        down_((p.height + kTile - 1) / kTile),
        across_((p.width + kTile - 1) / kTile),
        nothing_(p.padded_inputs, X{}) {}

  void run() const {
    int64_t tiles = p_.maps * down_ * across_, groups = (p_.strips + kWide - 1) / kWide;
    bool is_large = worth_threads(tiles * p_.padded_inputs * kPlaces);
    int64_t threads = is_large ? num_threads() : 1;
    // As many tiles for each thread, so that all end together; with fewer tiles than a block has,
    // each thread computes a part of the outputs, because a product reads all of its weights.
    int64_t parts = tiles < kBlock ? std::min(threads, groups) : 1;
    int64_t rounds = (tiles + kBlock * threads - 1) / (kBlock * threads);
    int64_t blocks = parts > 1 ? std::min<int64_t>(tiles, 1) : std::min(tiles, rounds * threads);
    share_pieces(blocks * parts, threads, [&](Pieces& pieces) {
      int64_t products_size = kPlaces * products_step(kBlock);
      int64_t sums_bytes = kPlaces * sums_step(kBlock) * sizeof(Element);
      float* products = scratch(products_size * sizeof(float) + sums_bytes);
      Element* sums = (Element*)(products + products_size);
      for (int64_t piece; pieces.take(piece);) {
        int64_t block = piece / parts, part = piece % parts;
        int64_t first = block * tiles / blocks, last = (block + 1) * tiles / blocks;
        int64_t group = part * groups / parts, end = (part + 1) * groups / parts;
        take_patches(first, last, sums);
        for (; group < end; ++group) {
          multiply_group(sums, last - first, group * kWide, products);
          write_results(first, last, group * kWide, products);
        }
      }
    });
  }

 private:
  // The place where a tile's results begin.
  struct Place {
    int64_t map, top, left;
  };

  Place place_of(int64_t tile) const {
    int64_t each = across_ * down_;
    return {tile / each, tile % each / across_ * kTile, tile % across_ * kTile};
  }
  int64_t cell(const Place& place, int64_t y, int64_t x) const {
    return (place.map * p_.height + place.top + y) * p_.width + place.left + x;
  }
  // Distance from place to place for this number of tiles.
  int64_t sums_step(int64_t tiles) const { return tiles * p_.padded_inputs + kGap; }
  int64_t products_step(int64_t tiles) const { return tiles * kWide * kStrip + kGap; }

  // Memory of this thread, kept from call to call.
  static float* scratch(int64_t num_bytes) {
    thread_local std::vector<float, AlignedAllocator<float>> memory;
    int64_t count = (num_bytes + sizeof(float) - 1) / sizeof(float);
    if (int64_t(memory.size()) < count) memory.resize(count);
    return memory.data();
  }

  // Patches of tiles first .. last - 1 as sums [places, tiles, padded inputs].
  void take_patches(int64_t first, int64_t last, Element* sums) const {
    int64_t step = sums_step(last - first);
    for (int64_t tile = first; tile < last; ++tile) {
      const X* cells[kPatch][kPatch];
      find(place_of(tile), cells);
      Element* to = sums + (tile - first) * p_.padded_inputs;
      int64_t c = 0;
      for (; c + kLanes <= p_.inputs; c += kLanes) sum<true>(cells, c, to + c, step);
      for (; c < p_.padded_inputs; c += kLanes) sum<false>(cells, c, to + c, step);
    }
  }

  // Finds the cells of a patch; cells outside the map are zero.
  void find(const Place& place, const X* (&cells)[kPatch][kPatch]) const {
    for (int y = 0; y < kPatch; ++y)
      for (int x = 0; x < kPatch; ++x) {
        int64_t down = place.top + y - 1, across = place.left + x - 1;
        bool is_inside = down >= 0 && down < p_.height && across >= 0 && across < p_.width;
        cells[y][x] = is_inside ? p_.x + cell(place, y - 1, x - 1) * p_.x_stride : nothing_.data();
      }
  }

  template <bool is_whole>
  ALWAYS_INLINE void sum(const X* const (&cells)[kPatch][kPatch], int64_t channel, Element* to,
                         int64_t step) const {
    int64_t count = is_whole ? kLanes : std::max<int64_t>(0, p_.inputs - channel);
    Lanes rows[kPatch][kPatch];
    for (int y = 0; y < kPatch; ++y) {
      Lanes line[kPatch];
      for (int x = 0; x < kPatch; ++x) line[x] = load_some(cells[y][x] + channel, count);
      Method::take_apart(line, rows[y]);
    }
    for (int x = 0; x < kPatch; ++x) {
      Lanes column[kPatch], sums[kPatch];
      for (int y = 0; y < kPatch; ++y) column[y] = rows[y][x];
      Method::take_apart(column, sums);
      for (int y = 0; y < kPatch; ++y) Products::store(to + (y * kPatch + x) * step, sums[y]);
    }
  }

  // Multiplies all tiles of a block by kWide strips of outputs, at all places.
  void multiply_group(const Element* sums, int64_t tiles, int64_t strip, float* products) const {
    int64_t parts = (tiles + kRows - 1) / kRows, size = p_.padded_inputs * kStrip;
    bool is_whole = strip + kWide <= p_.strips;
    for (int64_t place = 0; place < kPlaces; ++place) {
      const Element* x = sums + place * sums_step(tiles);
      const Element* weight = (const Element*)p_.weight + (place * p_.strips + strip) * size;
      float* to = products + place * products_step(tiles);
      for (int64_t part = 0; part < parts; ++part) {
        int64_t row = part * tiles / parts, count = (part + 1) * tiles / parts - row;
        with_constant<kRows>(count, [&](auto rows) INLINE_BODY {
          const Element* from = x + row * p_.padded_inputs;
          float* at = to + row * kWide * kStrip;
          if (is_whole) return multiply<rows, kWide>(from, weight, at);
          for (int64_t s = 0; s < p_.strips - strip; ++s)
            multiply<rows, 1>(from, weight + s * size, at + s * kStrip);
        });
      }
    }
  }

  // `rows` tiles times `strips` strips of outputs, all inputs.
  template <int rows, int strips>
  ALWAYS_INLINE void multiply(const Element* x, const Element* weight, float* to) const {
    int64_t inputs = p_.padded_inputs;
    constexpr int kDepth = Products::kDepth;
    Lanes sums[rows][strips][kParts] = {};
    for (int64_t k = 0; k < inputs; k += kDepth) {
      Lanes weights[strips][kParts];
#pragma GCC unroll 4
      for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
        for (int part = 0; part < kParts; ++part)
          weights[s][part] = Products::load_packed(weight + (s * inputs + k) * kStrip +
                                                   part * kLanes * kDepth);
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r) {
        Lanes number = Products::repeat(x + r * inputs + k);
#pragma GCC unroll 4
        for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
          for (int part = 0; part < kParts; ++part)
            sums[r][s][part] = Products::multiply_add(sums[r][s][part], weights[s][part], number);
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
        for (int part = 0; part < kParts; ++part)
          store(to + (r * kWide + s) * kStrip + part * kLanes, sums[r][s][part]);
  }

  // Turns products [places, tiles, kWide, 16] into results, with the operations that follow.
  void write_results(int64_t first, int64_t last, int64_t strip, const float* products) const {
    int64_t step = products_step(last - first), channel = strip * kStrip;
    int64_t end = std::min(p_.outputs, channel + kWide * kStrip);
    for (int64_t tile = first; tile < last; ++tile) {
      Place place = place_of(tile);
      const float* from = products + (tile - first) * kWide * kStrip;
      for (int64_t c = channel; c < end; c += kLanes)
        write_some(place, c, from + (c - channel), step);
    }
  }

  ALWAYS_INLINE void write_some(const Place& place, int64_t channel, const float* products,
                                int64_t step) const {
    Lanes rows[kPatch][kTile];
    for (int y = 0; y < kPatch; ++y) {
      Lanes line[kPatch];
      for (int x = 0; x < kPatch; ++x)
        line[x] = load_lanes(products + (y * kPatch + x) * step);
      Method::put_together(line, rows[y]);
    }
    int64_t height = std::min<int64_t>(kTile, p_.height - place.top);
    int64_t width = std::min<int64_t>(kTile, p_.width - place.left);
    Lanes bias = load_lanes(p_.bias + channel), slopes = load_lanes(p_.slopes + channel);
    for (int64_t x = 0; x < width; ++x) {
      Lanes column[kPatch], results[kTile];
      for (int y = 0; y < kPatch; ++y) column[y] = rows[y][x];
      Method::put_together(column, results);
      for (int64_t y = 0; y < height; ++y) {
        Lanes result = results[y] + bias;
        result = result < 0.0f ? slopes * result : result;
        store_some(result, cell(place, y, x), channel);
      }
    }
  }

  ALWAYS_INLINE void store_some(Lanes result, int64_t cell, int64_t channel) const {
    int64_t count = std::min<int64_t>(kLanes, p_.outputs - channel);
    if (p_.addend) {
      const X* addend = p_.addend + cell * p_.addend_stride + channel;
      result = multiply_add(fill(p_.scale), result, load_some(addend, count));
    }
    X* to = p_.out + cell * p_.out_stride + channel;
    if (count == kLanes) return Products::store(to, result);
    X whole[kLanes];
    Products::store(whole, result);
    std::memcpy(to, whole, count * sizeof(X));
  }

  const Problem<X> p_;
  const int64_t down_, across_;  // tiles of a map
  const std::vector<X> nothing_;
};

}  // namespace native::winograd
