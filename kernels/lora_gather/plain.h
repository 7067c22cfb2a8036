// Adapters in the rows' type.
#pragma once
#include "halves.h"
#include "strip_problem.h"
#include "tiles.h"

namespace native::lora {

template <class T>
struct Plain {
  using Given = T;
  static constexpr int kRanks = 1;  // ranks that loops take together
  // Ranks of a tile: with AVX-512 there are twice as many registers.
  static constexpr int kTogether = kLanes == 16 ? 4 : 2;
  static constexpr int64_t kAhead = 4;  // ranks between the present read and the prefetch
  static constexpr int64_t kUnit = 2 * kLanes;  // outputs that stay together

  static Ranks ranks(const char* adapter, int64_t rank, int64_t size, int64_t first) {
    return {adapter + first * int64_t(sizeof(T)), size * int64_t(sizeof(T)), rank};
  }

  // The data of a row that tiles get.
  static int64_t given_size(int64_t) { return 0; }
  static const T* given(const T* row, int64_t, T*) { return row; }

  // inner[m] = a · x for ranks first .. last - 1.
  template <int rows>
  static void shrink(const T* const* numbers, int64_t size, const Ranks& all, int64_t first,
                     int64_t last, float* inner, const Ranks& then) {
    tiles<rows>(first, last, [&](auto ranks, int64_t from) {
      shrink_tile<rows, ranks>(numbers, size, all, from, inner, then);
    });
  }

  // y[m] += scale · inner[m] · b for `count` outputs.
  template <int rows>
  static void expand(const Ranks& all, const float* inner, int64_t count, float scale, T* const* y,
                     const Ranks& then) {
    constexpr int64_t kMost = kSums / rows / kUnit * kUnit;
    int64_t width = std::min(kMost, (count + kUnit - 1) / kUnit * kUnit);
    auto* sums = (float*)strips::scratch<Sum>(kSums);
    for (int64_t at = 0; at < count; at += width) {
      int64_t length = std::min(width, count - at);
      Ranks part = all.at_byte(at * sizeof(T));
      Ranks later = at + width < count ? all.at_byte((at + width) * sizeof(T)) : then;
      std::fill_n(sums, rows * width, 0.0f);
      tiles<rows>(0, all.count, [&](auto ranks, int64_t from) {
        expand_tile<rows, ranks>(part, from, inner, length, sums, width, later);
      });
      for (int m = 0; m < rows; ++m) add_all(y[m] + at, scale, sums + m * width, length);
    }
  }

 private:
  static constexpr int64_t kSums = 1 << 12;  // sums of all rows that stay in the first-level cache
  struct Sum {
    float x;
  };

  // Calls `tile(ranks, from)`, a constant and the first of the ranks. Few rows go along one rank at
  // a time, in the order of memory, since reading it takes longer than multiplying.
  template <int rows, class Tile>
  static void tiles(int64_t first, int64_t last, Tile tile) {
    constexpr int kMost = rows <= 2 ? 1 : kTogether;
    for (int64_t from = first; from < last; from += kMost)
      with_constant<kMost>(std::min<int64_t>(kMost, last - from),
                           [&](auto ranks) { tile(ranks, from); });
  }

  template <int rows, int ranks>
  static void shrink_tile(const T* const* numbers, int64_t size, const Ranks& all, int64_t from,
                          float* inner, const Ranks& then) {
    const T* factors[ranks];
    const T* ahead[ranks];
    begin<ranks>(all, from, then, factors, ahead);
    Lanes sums[rows][ranks] = {};
    in_halves(size, [&](int64_t i, auto half) INLINE_BODY {
      if constexpr (half.is_first)
        each<ranks>([&](auto n) INLINE_BODY { fetch<2 * kLanes * sizeof(T)>(ahead[n] + i); });
      Lanes given[rows];
      each<rows>([&](auto m) INLINE_BODY { given[m] = half.load(numbers[m] + i); });
      each<ranks>([&](auto n) INLINE_BODY {
        Lanes factor = half.load(factors[n] + i);
        each<rows>([&](auto m) INLINE_BODY {
          sums[m][n] = multiply_add(given[m], factor, sums[m][n]);
        });
      });
    });
    each<rows>([&](auto m) INLINE_BODY {
      each<ranks>([&](auto n) INLINE_BODY {
        inner[m * all.count + from + n] = sum(sums[m][n]);
      });
    });
  }

  // Adds the products of some ranks to sums that are `width` apart from row to row.
  template <int rows, int ranks>
  static void expand_tile(const Ranks& all, int64_t from, const float* inner, int64_t count,
                          float* sums, int64_t width, const Ranks& then) {
    const T* factors[ranks];
    const T* ahead[ranks];
    Lanes given[rows][ranks];
    begin<ranks>(all, from, then, factors, ahead);
    each<ranks>([&](auto n) INLINE_BODY {
      each<rows>([&](auto m) INLINE_BODY {
        given[m][n] = fill(inner[m * all.count + from + n]);
      });
    });
    in_halves(count, [&](int64_t i, auto half) INLINE_BODY {
      if constexpr (half.is_first)
        each<ranks>([&](auto n) INLINE_BODY { fetch<2 * kLanes * sizeof(T)>(ahead[n] + i); });
      Lanes factor[ranks];
      each<ranks>([&](auto n) INLINE_BODY { factor[n] = half.load(factors[n] + i); });
      each<rows>([&](auto m) INLINE_BODY {
        float* to = sums + m * width + i + half.place;
        Lanes total = load_lanes(to);
        each<ranks>([&](auto n) INLINE_BODY {
          total = multiply_add(given[m][n], factor[n], total);
        });
        store(to, total);
      });
    });
  }

  // y += scale · sums, rounded once.
  static void add_all(T* y, float scale, const float* sums, int64_t count) {
    int64_t i = 0;
    for (; i + kUnit <= count; i += kUnit) add(y + i, scale, sums + i);
    if (i == count) return;
    T cut[kUnit] = {};
    std::memcpy(cut, y + i, (count - i) * sizeof(T));
    add(cut, scale, sums + i);
    std::memcpy(y + i, cut, (count - i) * sizeof(T));
  }
  static ALWAYS_INLINE void add(T* y, float scale, const float* sums) {
    Lanes first = multiply_add(fill(scale), load_lanes(sums), load_half<0>(y));
    Lanes second = multiply_add(fill(scale), load_lanes(sums + kLanes), load_half<1>(y));
    store_halves(y, first, second);
  }

  // The places of the numbers of ranks from `from` on, and the data to prefetch meanwhile.
  template <int ranks>
  static ALWAYS_INLINE void begin(const Ranks& all, int64_t from, const Ranks& then,
                                  const T** factors, const T** ahead) {
    each<ranks>([&](auto n) INLINE_BODY {
      factors[n] = (const T*)all.at(from + n);
      ahead[n] = (const T*)all.ahead(from + n, kAhead, then);
    });
  }
};

}  // namespace native::lora
