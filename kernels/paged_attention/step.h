// Scores, weights and sums of some rows over a tile.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>

#include "products.h"
#include "scratch.h"
#include "state.h"
#include "task.h"
#include "tile.h"

namespace {

using native::each;
using native::with_constant;

constexpr float kLog2E = 1.442695041f;
// A step of the inner loops has registers for rows times columns sums, for the smaller number of
// rows or columns that are multiplied, and one more: with AVX2's sixteen, a spilled register
// doubles the time.
constexpr int kRows = 6;
#if defined(__AVX512F__)
constexpr int columns_for(int) { return 4; }
#else
constexpr int columns_for(int rows) { return rows <= 3 ? 4 : 2; }
#endif

// The arithmetic of at most kRows rows and a tile: scores, weights, sums.
template <class T>
class Step {
  using Products = typename native::ProductsOf<T>::Type;
  using Element = typename Products::Element;
  static constexpr int kDepth = Products::kDepth;
  static constexpr int kWidth = kDepth * kLanes;

 public:
  static constexpr int64_t kScratchSize = kRows * (2 * kTile + 1);

  Step(const Arguments& a, const Tile<T>& tile, Scratch& scratch)
      : a(a),
        tile_(tile),
        width_(tile.width(a)),
        q_width_(tile.q_width(a)),
        weights_(scratch.take<Element>(kRows * kTile)),
        scores_(scratch.take<float>(kRows * kTile)),
        shrinks_(scratch.take<float>(kRows)) {}

  template <int rows>
  void score_some(const Element* queries, int64_t begin, int64_t end) {
    constexpr int kColumns = columns_for(rows);
    for (int64_t key = begin; key < end;) {
      int64_t columns = std::min<int64_t>(kColumns, (end - key) / kLanes);
      with_constant<kColumns>(columns, [&](auto c) { score<rows, c>(queries, key); });
      key += columns * kLanes;
    }
  }

  // Turns the scores of row `row` of the task, row `r` of a step, into weights. Lanes that it does
  // not see may hold anything. One copy for all rows, because copies could be compiled to round
  // differently.
  __attribute__((noinline)) void weigh(std::pair<int64_t, int64_t> seen, State& state,
                                       int64_t row, int64_t r) {
    typedef uint32_t Indices __attribute__((vector_size(4 * kLanes)));
    constexpr int kCount = kTile / kLanes;
    Indices lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    uint32_t length = std::max<int64_t>(0, seen.second - seen.first);
    native::IntLanes sees[kCount];
    Lanes scores[kCount], weights[kCount], high = fill(kNone);
    for (int i = 0; i < kCount; ++i) {
      sees[i] = (native::IntLanes)(lane + uint32_t(i * kLanes - seen.first) < length);
      Lanes x = bend(load_lanes(scores_ + r * kTile + i * kLanes), i);
      scores[i] = sees[i] ? x : fill(kNone);
      high = native::larger(high, scores[i]);
    }
    float before = state.peaks[row], peak = std::max(before, native::largest(high));
    state.peaks[row] = peak;
    float shrink = before == peak ? 1.0f : native::exp2_nonpositive(fill(before - peak))[0];
    shrinks_[r] = shrink;
    for (int i = 0; i < kCount; ++i) {
      Lanes weight = native::exp2_nonpositive(scores[i] - peak);
      weights[i] = sees[i] ? weight : Lanes{};
    }
    Element* packed = weights_ + r * kTile;
    Products::pack_weights(weights, packed);
    float* total = state.totals + row * kLanes;
    Lanes shrunk = load_lanes(total) * shrink;
    // After rounding, so that the weights' sum is exactly one.
    store(total, Products::template add_weights<kCount>(shrunk, packed));
    if (a.cache_format == kSame) return;
    for (int i = 0; i < kCount; ++i) weights[i] *= load_lanes(tile_.value_scales() + i * kLanes);
    Products::pack_weights(weights, packed);
  }

  // Adds weighted values, which are read in place.
  template <int rows>
  void mix_direct(float* to, int64_t begin, int64_t end) {
    constexpr int64_t kSome = columns_for(rows) * kLanes;
    std::integral_constant<int64_t, kWidth> whole;
    int64_t d = 0;
    for (; d + kSome <= a.dim; d += kSome)
      mix_direct<rows, kSome / kWidth>(to, d, whole, begin, end);
    for (; d + kWidth <= a.dim; d += kWidth) mix_direct<rows, 1>(to, d, whole, begin, end);
    if (d < a.dim) mix_direct<rows, 1>(to, d, a.dim - d, begin, end);
  }

  // The same for packed values.
  template <int rows>
  void mix_packed(float* to, int64_t begin, int64_t end) {
    constexpr int kColumns = columns_for(rows);
    for (int64_t d = 0; d < width_; d += kColumns * kLanes) {
      int64_t columns = std::min<int64_t>(kColumns, (width_ - d) / kLanes);
      with_constant<kColumns>(columns, [&](auto c) { mix<rows, c>(to + d, d, begin, end); });
    }
  }

 private:
  template <int rows, int columns>
  void score(const Element* queries, int64_t key) {
    Lanes sums[rows][columns];
    each<rows>([&](auto r) INLINE_BODY {
      each<columns>([&](auto c) INLINE_BODY { sums[r][c] = Lanes{}; });
    });
    for (int64_t d = 0; d < q_width_; d += kDepth) {
      if (d % (kDepth * kTurn) == 0) tile_.fetch_some();
      multiply_add(queries + d, q_width_, tile_.keys() + d * kTile + key * kDepth, sums);
    }
    each<rows>([&](auto r) INLINE_BODY {
      float* to = scores_ + r * kTile + key;
      each<columns>([&](auto c) INLINE_BODY { store(to + c * kLanes, sums[r][c]); });
    });
  }

  // One step of a matrix product: every row's next factors times `columns` registers; `load(i, to)`
  // returns the i-th kSome of them.
  template <int kSome, int rows, int columns, class Load>
  ALWAYS_INLINE static void multiply_add(const Element* factors, int64_t stride, Load load,
                                         Lanes (&sums)[rows][columns]) {
    auto add = [&](auto r, auto c, Lanes packed, Lanes repeated) INLINE_BODY {
      sums[r][c] = Products::multiply_add(sums[r][c], packed, repeated);
    };
    if constexpr (rows < columns) {
      Lanes repeated[rows];
      each<rows>([&](auto r) INLINE_BODY {
        repeated[r] = Products::repeat(factors + r * stride);
      });
      each<columns / kSome>([&](auto some) INLINE_BODY {
        Lanes packed[kSome];
        load(some, packed);
        each<kSome>([&](auto i) INLINE_BODY {
          std::integral_constant<int, some * kSome + i> c;
          each<rows>([&](auto r) INLINE_BODY { add(r, c, packed[i], repeated[r]); });
        });
      });
    } else {
      Lanes packed[columns];
      each<columns / kSome>([&](auto some) INLINE_BODY { load(some, packed + some * kSome); });
      each<rows>([&](auto r) INLINE_BODY {
        Lanes repeated = Products::repeat(factors + r * stride);
        each<columns>([&](auto c) INLINE_BODY { add(r, c, packed[c], repeated); });
      });
    }
  }
  template <int rows, int columns>
  ALWAYS_INLINE static void multiply_add(const Element* factors, int64_t stride,
                                         const Element* from, Lanes (&sums)[rows][columns]) {
    auto load = [&](auto c, Lanes* to) INLINE_BODY {
      *to = Products::load_packed(from + c * kLanes * kDepth);
    };
    multiply_add<1>(factors, stride, load, sums);
  }

  // Converts products of queries and keys (of the tile's i-th kLanes) to scores, as powers of two.
  ALWAYS_INLINE Lanes bend(Lanes x, int i) const {
    if (a.cache_format != kSame) x *= load_lanes(tile_.key_scales() + i * kLanes);
    if (a.soft_cap > 0)
      return native::tanh_lanes(x * (a.scale / a.soft_cap)) * (a.soft_cap * kLog2E);
    return x * (a.scale * kLog2E);
  }

  template <int rows, int parts, class Count>
  void mix_direct(float* to, int64_t d, Count count, int64_t begin, int64_t end) {
    Lanes sums[rows][parts * kDepth];
    load_sums(to + d, sums);
    for (int64_t key = begin; key < end; key += kDepth) {
      if (key % (kDepth * kTurn) == 0) tile_.fetch_some();
      auto load = [&](auto part, Lanes* values) INLINE_BODY {
        tile_.load_values(key, d + part * kWidth, count, values);
      };
      multiply_add<kDepth>(weights_ + key, kTile, load, sums);
    }
    store_sums(to + d, sums);
  }

  template <int rows, int columns>
  void mix(float* to, int64_t d, int64_t begin, int64_t end) {
    Lanes sums[rows][columns];
    load_sums(to, sums);
    for (int64_t key = begin; key < end; key += kDepth)
      multiply_add(weights_ + key, kTile, tile_.values() + key * width_ + d * kDepth, sums);
    store_sums(to, sums);
  }

  template <int rows, int columns>
  ALWAYS_INLINE void load_sums(const float* from, Lanes (&sums)[rows][columns]) const {
    each<rows>([&](auto r) INLINE_BODY {
      each<columns>([&](auto c) INLINE_BODY {
        sums[r][c] = load_lanes(from + r * width_ + c * kLanes) * shrinks_[r];
      });
    });
  }
  template <int rows, int columns>
  ALWAYS_INLINE void store_sums(float* to, const Lanes (&sums)[rows][columns]) const {
    each<rows>([&](auto r) INLINE_BODY {
      each<columns>([&](auto c) INLINE_BODY { store(to + r * width_ + c * kLanes, sums[r][c]); });
    });
  }

  const Arguments& a;
  const Tile<T>& tile_;
  int64_t width_, q_width_;
  Element* weights_;
  float *scores_, *shrinks_;
};

}  // namespace
