// Adapters in 8 bits (`kernels/lora_gather/packed.py`): a row is a step in fp32 for each kGroup
// numbers, then the numbers in int8. Half of what bf16 takes comes from memory, which is what a step
// with many adapters waits for.
#pragma once
#include "halves.h"
#include "tiles.h"

namespace native::lora {

template <class T>
struct Packed {
  using Given = float;
  static constexpr int64_t kGroup = 64, kUnit = kGroup;
  static constexpr int kParts = kGroup / kLanes;

  static Ranks ranks(const void* all, int64_t adapter, int64_t rank, int64_t size, int64_t first) {
    int64_t steps = (size + kGroup - 1) / kGroup * sizeof(float);
    int64_t stride = steps + (size + 3) / 4 * 4;
    const char* row = (const char*)all + adapter * rank * stride;
    return {row + steps + first, stride, rank,
            first / kGroup * int64_t(sizeof(float)) - steps - first};
  }

  // Converted once for all ranks.
  static const float* given(const T* row, int64_t size, float* copy) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) store(copy + i, load_lanes(row + i));
    for (; i < size; ++i) copy[i] = to_float(row[i]);
    return copy;
  }
  static constexpr bool kCopies = true;

  template <int rows, int ranks>
  static void shrink_tile(const float* const* numbers, int64_t size, const Ranks& all, int64_t from,
                          float* inner, const Ranks& then) {
    const char* factors[ranks];
    const char* ahead[ranks];
    begin_with_steps<ranks>(all, from, then, factors, ahead);
    Lanes sums[rows][ranks] = {};
    groups(size, [&](int64_t i, auto part) INLINE_BODY {
      each<ranks>([&](auto n) INLINE_BODY { fetch<kGroup>(ahead[n] + i); });
      Lanes products[rows][ranks] = {};
      each<kParts>([&](auto p) INLINE_BODY {
        Lanes given[rows];
        each<rows>([&](auto m) INLINE_BODY { given[m] = part.template load<p>(numbers[m] + i); });
        each<ranks>([&](auto n) INLINE_BODY {
          Lanes factor = part.template load<p>((const int8_t*)factors[n] + i);
          each<rows>([&](auto m) INLINE_BODY {
            products[m][n] = multiply_add(given[m], factor, products[m][n]);
          });
        });
      });
      each<ranks>([&](auto n) INLINE_BODY {
        Lanes step = fill(step_of(factors[n] + all.steps, i));
        each<rows>([&](auto m) INLINE_BODY {
          sums[m][n] = multiply_add(products[m][n], step, sums[m][n]);
        });
      });
    });
    put_sums(sums, all, from, inner);
  }

  // Adds the products of some ranks to sums that are `width` apart from row to row.
  template <int rows, int ranks>
  static void expand_tile(const Ranks& all, int64_t from, const float* inner, int64_t count,
                          float* sums, int64_t width, const Ranks& then) {
    const char* factors[ranks];
    const char* ahead[ranks];
    begin_with_steps<ranks>(all, from, then, factors, ahead);
    groups(count, [&](int64_t i, auto part) INLINE_BODY {
      Lanes given[rows][ranks];
      each<ranks>([&](auto n) INLINE_BODY {
        fetch<kGroup>(ahead[n] + i);
        float step = step_of(factors[n] + all.steps, i);
        each<rows>([&](auto m) INLINE_BODY {
          given[m][n] = fill(inner[m * all.count + from + n] * step);
        });
      });
      each<kParts>([&](auto p) INLINE_BODY {
        Lanes factor[ranks];
        each<ranks>([&](auto n) INLINE_BODY {
          factor[n] = part.template load<p>((const int8_t*)factors[n] + i);
        });
        each<rows>([&](auto m) INLINE_BODY {
          float* to = sums + m * width + i + p * kLanes;
          Lanes total = load_lanes(to);
          each<ranks>([&](auto n) INLINE_BODY {
            total = multiply_add(given[m][n], factor[n], total);
          });
          store(to, total);
        });
      });
    });
  }

  // y += scale · sums of kUnit outputs, rounded once.
  static ALWAYS_INLINE void add(T* y, float scale, const float* sums) {
    for (int at = 0; at < kUnit; at += 2 * kLanes) {
      Lanes first = multiply_add(fill(scale), load_lanes(sums + at), load_lanes(y + at));
      Lanes second =
          multiply_add(fill(scale), load_lanes(sums + at + kLanes), load_lanes(y + at + kLanes));
      store_in_order(y + at, first, second);
    }
  }

 private:
  // Of a group: whole, or the last ones of a row and zeros.
  template <bool is_whole>
  struct Part {
    int64_t count;

    template <int p, class Number>
    ALWAYS_INLINE Lanes load(const Number* from) const {
      if constexpr (is_whole) return load_lanes(from + p * kLanes);
      Number whole[kLanes] = {};
      int64_t left = std::clamp<int64_t>(count - p * kLanes, 0, kLanes);
      std::memcpy(whole, from + p * kLanes, left * sizeof(Number));
      return load_lanes(whole);
    }
  };

  template <class Work>
  static ALWAYS_INLINE void groups(int64_t size, Work work) {
    int64_t i = 0;
    for (; i + kGroup <= size; i += kGroup) work(i, Part<true>{kGroup});
    if (i < size) work(i, Part<false>{size - i});
  }

  // As `begin`, and the steps.
  template <int ranks>
  static ALWAYS_INLINE void begin_with_steps(const Ranks& all, int64_t from, const Ranks& then,
                                             const char** factors, const char** ahead) {
    begin<ranks>(all, from, then, factors, ahead);
    each<ranks>([&](auto n) INLINE_BODY { fetch<64>(ahead[n] - 64); });  // their end
  }

  static ALWAYS_INLINE float step_of(const char* steps, int64_t i) {
    float step;
    std::memcpy(&step, steps + i / kGroup * sizeof step, sizeof step);
    return step;
  }
};

}  // namespace native::lora
