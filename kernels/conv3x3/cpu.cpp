// 3x3 convolution of channels-last maps in fp32, by Winograd's F(4x4, 3x3) (Winograd 1980; Lavin
// and Gray 2015): patches of 6x6 cells, which overlap by two, and kernels are transformed to 36
// sums each, whose products are those of 4x4 results: 36 multiplications where the definition has
// 144.
//
// A piece of work is a block of tiles: their patches' sums, for each of the 36 places a product of
// matrices (tiles times inputs times outputs), then the results with all operations that follow. A
// result depends on its map alone: sums go through the inputs in order, whichever tiles share a
// block.
#include "pieces.h"
#include "products.h"
#include "vec.h"

#include <vector>

namespace {

using native::kLanes;
using native::Lanes;
using native::multiply_add;

constexpr int kTile = 4, kPatch = 6, kPlaces = kPatch * kPatch;
constexpr int kStrip = 16;                        // outputs whose weights lie side by side
constexpr int kParts = kStrip / kLanes;           // registers of a strip
constexpr int kWide = kParts == 1 ? 2 : 1;        // strips of a product in registers
constexpr int kRows = kParts == 1 ? 12 : 6;       // its tiles: sums take 24 or 12 registers
constexpr int64_t kBlock = 24;                    // with 192 inputs 650 KB of sums
// Distance between the numbers of two places: at multiples of 4 KB all would need the same lines of
// a cache.
constexpr int64_t kGap = 16;

struct Problem {
  const float* x;
  int64_t x_stride;  // from cell to cell
  const float* weight;  // [36, strips, inputs, 16]
  int64_t inputs, padded_inputs, outputs, strips;
  const float *bias, *slopes;  // of the strips' outputs
  const float* addend;
  int64_t addend_stride;
  float scale;
  float* out;
  int64_t out_stride, maps, height, width;

  int64_t tiles_down() const { return (height + kTile - 1) / kTile; }
  int64_t tiles_across() const { return (width + kTile - 1) / kTile; }
  int64_t tiles() const { return maps * tiles_down() * tiles_across(); }
  int64_t padded_outputs() const { return strips * kStrip; }
  // Distance from place to place for this number of tiles.
  int64_t sums_step(int64_t tiles) const { return tiles * padded_inputs + kGap; }
  int64_t products_step(int64_t tiles) const { return tiles * padded_outputs() + kGap; }
};

// The place where a tile's results begin.
struct Place {
  int64_t map, top, left;

  Place(const Problem& p, int64_t tile) {
    int64_t across = p.tiles_across(), each = across * p.tiles_down();
    map = tile / each;
    top = tile % each / across * kTile;
    left = tile % across * kTile;
  }
  int64_t cell(const Problem& p, int64_t y, int64_t x) const {
    return (map * p.height + top + y) * p.width + left + x;
  }
};

// Computes six sums from six numbers.
ALWAYS_INLINE void take_apart(const Lanes (&d)[kPatch], Lanes (&sums)[kPatch]) {
  Lanes four = native::fill(4.0f), minus_five = native::fill(-5.0f);
  Lanes even = multiply_add(native::fill(-4.0f), d[2], d[4]);
  Lanes odd = multiply_add(native::fill(-4.0f), d[1], d[3]);
  Lanes near = d[4] - d[2], far = d[3] - d[1];
  sums[0] = multiply_add(four, d[0], multiply_add(minus_five, d[2], d[4]));
  sums[1] = even + odd;
  sums[2] = even - odd;
  sums[3] = multiply_add(native::fill(2.0f), far, near);
  sums[4] = multiply_add(native::fill(-2.0f), far, near);
  sums[5] = multiply_add(four, d[1], multiply_add(minus_five, d[3], d[5]));
}

// Computes four results from six products.
ALWAYS_INLINE void put_together(const Lanes (&m)[kPatch], Lanes (&results)[kTile]) {
  Lanes one = m[1] + m[2], other = m[1] - m[2];
  Lanes two = m[3] + m[4], half = m[3] - m[4];
  results[0] = m[0] + one + two;
  results[1] = multiply_add(native::fill(2.0f), half, other);
  results[2] = multiply_add(native::fill(4.0f), two, one);
  results[3] = multiply_add(native::fill(8.0f), half, other) + m[5];
}

// Patches of tiles first .. last - 1 as sums [36, tiles, padded inputs].
class Patches {
 public:
  Patches(const Problem& p, float* sums) : p_(p), sums_(sums), nothing_(p.padded_inputs, 0.0f) {}

  void take(int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      find(Place(p_, tile));
      float* to = sums_ + (tile - first) * p_.padded_inputs;
      int64_t step = p_.sums_step(last - first), c = 0;
      for (; c + kLanes <= p_.inputs; c += kLanes) sum<true>(c, to + c, step);
      for (; c < p_.padded_inputs; c += kLanes) sum<false>(c, to + c, step);
    }
  }

 private:
  // Finds the cells of a patch; cells outside the map are zero.
  void find(const Place& place) {
    for (int y = 0; y < kPatch; ++y)
      for (int x = 0; x < kPatch; ++x) {
        int64_t down = place.top + y - 1, across = place.left + x - 1;
        bool is_inside = down >= 0 && down < p_.height && across >= 0 && across < p_.width;
        cells_[y][x] =
            is_inside ? p_.x + place.cell(p_, y - 1, x - 1) * p_.x_stride : nothing_.data();
      }
  }

  template <bool is_whole>
  ALWAYS_INLINE void sum(int64_t channel, float* to, int64_t step) const {
    int64_t count = is_whole ? kLanes : std::max<int64_t>(0, p_.inputs - channel);
    Lanes rows[kPatch][kPatch];
    for (int y = 0; y < kPatch; ++y) {
      Lanes cells[kPatch];
      for (int x = 0; x < kPatch; ++x)
        cells[x] = native::load_some(cells_[y][x] + channel, count);
      take_apart(cells, rows[y]);
    }
    for (int x = 0; x < kPatch; ++x) {
      Lanes column[kPatch], sums[kPatch];
      for (int y = 0; y < kPatch; ++y) column[y] = rows[y][x];
      take_apart(column, sums);
      for (int y = 0; y < kPatch; ++y) native::store(to + (y * kPatch + x) * step, sums[y]);
    }
  }

  const Problem& p_;
  float* sums_;
  std::vector<float> nothing_;
  const float* cells_[kPatch][kPatch];
};

// `rows` tiles times `strips` strips of outputs, all inputs.
template <int rows, int strips>
ALWAYS_INLINE void multiply(const float* x, const float* weight, int64_t inputs, float* to,
                            int64_t to_stride) {
  Lanes sums[rows][strips][kParts] = {};
  for (int64_t k = 0; k < inputs; ++k) {
    Lanes weights[strips][kParts];
#pragma GCC unroll 2
    for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part)
        weights[s][part] = native::load_lanes(weight + (s * inputs + k) * kStrip + part * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      Lanes number = native::fill(x[r * inputs + k]);
#pragma GCC unroll 2
      for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
        for (int part = 0; part < kParts; ++part)
          sums[r][s][part] = multiply_add(weights[s][part], number, sums[r][s][part]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part)
        native::store(to + r * to_stride + s * kStrip + part * kLanes, sums[r][s][part]);
}

// Multiplies all tiles of a block by all outputs, at one of the 36 places.
void multiply_block(const Problem& p, const float* x, int64_t tiles, const float* weight, float* to) {
  int64_t stride = p.padded_outputs(), parts = (tiles + kRows - 1) / kRows;
  for (int64_t s = 0; s < p.strips; s += kWide)
    for (int64_t part = 0; part < parts; ++part) {
      int64_t row = part * tiles / parts, count = (part + 1) * tiles / parts - row;
      const float *from = x + row * p.padded_inputs, *of = weight + s * p.padded_inputs * kStrip;
      float* at = to + row * stride + s * kStrip;
      native::with_constant<kRows>(count, [&](auto rows) INLINE_BODY {
        if (s + kWide <= p.strips)
          multiply<rows, kWide>(from, of, p.padded_inputs, at, stride);
        else
          multiply<rows, 1>(from, of, p.padded_inputs, at, stride);
      });
    }
}

// Turns products [36, tiles, strips, 16] into results, with the operations that follow.
class Results {
 public:
  Results(const Problem& p, const float* products) : p_(p), products_(products) {}

  void write(int64_t first, int64_t last) const {
    int64_t outputs = p_.padded_outputs(), step = p_.products_step(last - first);
    for (int64_t tile = first; tile < last; ++tile) {
      Place place(p_, tile);
      for (int64_t c = 0; c < p_.outputs; c += kLanes)
        write_some(place, c, products_ + (tile - first) * outputs + c, step);
    }
  }

 private:
  ALWAYS_INLINE void write_some(const Place& place, int64_t channel, const float* products,
                                int64_t step) const {
    Lanes rows[kPatch][kTile];
    for (int y = 0; y < kPatch; ++y) {
      Lanes line[kPatch];
      for (int x = 0; x < kPatch; ++x)
        line[x] = native::load_lanes(products + (y * kPatch + x) * step);
      put_together(line, rows[y]);
    }
    int64_t height = std::min<int64_t>(kTile, p_.height - place.top);
    int64_t width = std::min<int64_t>(kTile, p_.width - place.left);
    Lanes bias = native::load_lanes(p_.bias + channel);
    Lanes slopes = native::load_lanes(p_.slopes + channel);
    for (int64_t x = 0; x < width; ++x) {
      Lanes column[kPatch], results[kTile];
      for (int y = 0; y < kPatch; ++y) column[y] = rows[y][x];
      put_together(column, results);
      for (int64_t y = 0; y < height; ++y) {
        Lanes result = results[y] + bias;
        result = result < 0.0f ? slopes * result : result;
        store_some(result, place.cell(p_, y, x), channel);
      }
    }
  }

  ALWAYS_INLINE void store_some(Lanes result, int64_t cell, int64_t channel) const {
    int64_t count = std::min<int64_t>(kLanes, p_.outputs - channel);
    if (p_.addend) {
      const float* addend = p_.addend + cell * p_.addend_stride + channel;
      result = multiply_add(native::fill(p_.scale), result, native::load_some(addend, count));
    }
    float* to = p_.out + cell * p_.out_stride + channel;
    if (count == kLanes) return native::store(to, result);
    std::memcpy(to, &result, count * sizeof(float));
  }

  const Problem& p_;
  const float* products_;
};

// Memory of this thread, kept from call to call.
float* scratch(int64_t count) {
  thread_local std::vector<float, native::AlignedAllocator<float>> memory;
  if (int64_t(memory.size()) < count) memory.resize(count);
  return memory.data();
}

void convolve(const Problem& p) {
  int64_t tiles = p.tiles();
  bool is_large = native::worth_threads(tiles * p.padded_inputs * kPlaces);
  int64_t threads = is_large ? native::num_threads() : 1;
  // As many tiles for each thread, so that all end together.
  int64_t rounds = (tiles + kBlock * threads - 1) / (kBlock * threads);
  int64_t blocks = std::min(tiles, rounds * threads);
  native::share_pieces(blocks, threads, [&](native::Pieces& pieces) {
    float* sums = scratch(kPlaces * (p.sums_step(kBlock) + p.products_step(kBlock)));
    float* products = sums + kPlaces * p.sums_step(kBlock);
    Patches patches(p, sums);
    Results results(p, products);
    for (int64_t block; pieces.take(block);) {
      int64_t first = block * tiles / blocks, last = (block + 1) * tiles / blocks;
      patches.take(first, last);
      for (int64_t place = 0; place < kPlaces; ++place)
        multiply_block(p, sums + place * p.sums_step(last - first), last - first,
                       p.weight + place * p.padded_outputs() * p.padded_inputs,
                       products + place * p.products_step(last - first));
      results.write(first, last);
    }
  });
}

}  // namespace

extern "C" void tandem_conv3x3(const float* x, int64_t x_stride, const float* weight,
                               const float* bias, const float* slopes, const float* addend,
                               int64_t addend_stride, float scale, float* out, int64_t out_stride,
                               int64_t maps, int64_t height, int64_t width, int64_t inputs,
                               int64_t padded_inputs, int64_t outputs, int64_t strips) {
  convolve({x, x_stride, weight, inputs, padded_inputs, outputs, strips, bias, slopes, addend,
            addend_stride, scale, out, out_stride, maps, height, width});
}
