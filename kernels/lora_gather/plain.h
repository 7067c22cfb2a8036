// Adapters in the type of the rows.
#pragma once
#include "halves.h"
#include "tiles.h"

namespace native::lora {

template <class T>
struct Plain {
  using Given = T;
  static constexpr int64_t kUnit = 2 * kLanes;  // of outputs that stay together

  static Ranks ranks(const void* all, int64_t adapter, int64_t rank, int64_t size, int64_t first) {
    int64_t stride = size * sizeof(T);
    return {(const char*)all + adapter * rank * stride + first * int64_t(sizeof(T)), stride, rank};
  }

  // What tiles are given of a row.
  static const T* given(const T* row, int64_t, T*) { return row; }
  static constexpr bool kCopies = false;

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
    put_sums(sums, all, from, inner);
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

  // y += scale · sums of kUnit outputs, rounded once.
  static ALWAYS_INLINE void add(T* y, float scale, const float* sums) {
    Lanes first = multiply_add(fill(scale), load_lanes(sums), load_half<0>(y));
    Lanes second = multiply_add(fill(scale), load_lanes(sums + kLanes), load_half<1>(y));
    store_halves(y, first, second);
  }
};

}  // namespace native::lora
