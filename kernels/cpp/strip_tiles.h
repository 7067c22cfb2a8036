// Rows times strips of bf16 pairs in registers.
#pragma once
#include <algorithm>

#include "strip_problem.h"
#include "strip_steps.h"

namespace native::strips {

#if defined(__AVX512BF16__)
constexpr int kRows = 6;  // times kStrips: 24 of 32 registers hold sums

// Products of all rows with some strips, piece by piece.
class Tiles {
  using X = BFloat16;

 public:
  // For rows first .. last - 1. All tiles use the same few sums, which stay in the cache, unless
  // sums are kept for a next piece.
  Tiles(const Problem& problem, int64_t first, int64_t last)
      : p_(problem), first_(first), rows_(last - first) {}

  bool is_one() const { return rows_ <= kRows; }

  // Adds the products of a piece, steps first_step .. last_step - 1 along the inputs.
  void add(const Piece<X>& weights, int64_t strip, int64_t strips, int64_t first_step,
           int64_t last_step) {
    bool waits = !is_one() && (first_step > 0 || last_step * kInputs < p_.inputs);
    waiting_ = scratch<Vec>(std::max<int64_t>(waits ? rows_ : 0, kRows) * kStrips);
    Part part{weights, 0, 0, strip, first_step, last_step, false};
    with_strips<kStrips>(strips, part, waits);
  }

 private:
  // Part of a tile: its place, and its steps along the inputs.
  struct Part {
    Piece<X> weights;
    int64_t row, place, strip, step, end;
    bool is_last;
  };

  template <int V>
  void with_strips(int64_t count, Part part, bool waits) {
    if constexpr (V > 1)
      if (count < V) return with_strips<V - 1>(count, part, waits);
    // Tiles have about equal height, because a low one reads as many weights as a full one.
    int64_t tiles = (rows_ + kRows - 1) / kRows;
    for (int64_t t = 0; t < tiles; ++t) {
      int64_t place = t * rows_ / tiles, next = (t + 1) * rows_ / tiles;
      part.row = first_ + place;
      part.place = waits ? place : 0;
      part.is_last = t + 1 == tiles;
      with_rows<kRows, V>(next - place, part);
    }
  }

  template <int R, int V>
  void with_rows(int64_t count, const Part& at) {
    if constexpr (R > 1)
      if (count < R) return with_rows<R - 1, V>(count, at);
    run_tile<R, V>(at);
  }

  template <int R, int V>
  void run_tile(const Part& at) {
    Vec* sums = waiting_ + at.place * V;
    const X* x = (const X*)p_.x + at.row * p_.x_stride + at.step * kInputs;
    bool ends = at.end * kInputs == p_.inputs;
    if (at.step == 0) std::fill_n(sums, R * V, Vec{});
    if (ends)
      for (int r = 0; r < R; ++r) fetch_output<X, V>(p_, at.row + r, at.strip);
    int64_t steps = at.end - at.step;
    at.is_last && at.weights.fetches ? walk<R, V, true>(x, at.weights, steps, sums)
                                     : walk<R, V, false>(x, at.weights, steps, sums);
    if (!ends) return;
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v)
        finish<X>(p_, at.row + r, at.strip + v, sums[r * V + v]);
  }

  // Adds `steps` products to R rows times V strips of sums, which stay in registers meanwhile. The
  // only tile of its strips fetches what it needs soon. Of several, which find the strips in the
  // cache, the last one fetches the next strips, whose start is far from these strips' end.
  template <int R, int V, bool fetches>
  void walk(const X* x, Piece<X> given, int64_t steps, Vec* sums) const {
    const X* w = given.data;
    int64_t x_stride = p_.x_stride, w_stride = given.stride;
    int64_t ahead = is_one() ? kAhead : V * w_stride;
    Vec sum[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = sums[r * V + v];
    for (int64_t i = 0; i < steps; ++i, x += kInputs, w += kStep) {
      decltype(Pairs::weights(w)) weights[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) weights[v] = Pairs::weights(w + v * w_stride);
      if (fetches)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) __builtin_prefetch(w + v * w_stride + ahead, 0, 2);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        auto value = Pairs::row(x + r * x_stride);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = Pairs::add(sum[r][v], weights[v], value);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r * V + v] = sum[r][v];
  }

  static constexpr int64_t kInputs = 2, kStep = 16 * kInputs;  // elements of a strip
  static constexpr int64_t kAhead = 1024;                      // elements, 2 KiB in each strip

  Problem p_;
  int64_t first_, rows_;
  Vec* waiting_ = nullptr;
};
#endif

}  // namespace native::strips
