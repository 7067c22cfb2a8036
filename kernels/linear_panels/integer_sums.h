// Sums of integers within a group of weights, and how they join the totals in fp32.
#pragma once
#include "fp32_tiles.h"

namespace native::panels {

// A tile's sums of one group, in registers because all loops are unrolled.
template <int rows, int strips>
using Dots = IntLanes[rows][strips][fp32::kParts];

template <int rows, int strips, class Function>
ALWAYS_INLINE void for_tile(Function function) {
#pragma GCC unroll 6
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int s = 0; s < strips; ++s)
#pragma GCC unroll 2
      for (int part = 0; part < fp32::kParts; ++part) function(r, s, part);
}

// Adds a group's sums to the totals in memory, [rows][kGroup][16]. `numbers(s, part, min)` returns
// the group's scales or minima of some outputs. `scales` and `scaled_sums` are the first row's, as
// bits; the next row's are `stride` further.
template <bool has_min, int rows, int strips, class Numbers>
ALWAYS_INLINE void join(float* totals, const Numbers& numbers, const int32_t* scales,
                        const int32_t* scaled_sums, int64_t stride,
                        const Dots<rows, strips>& dots) {
  struct Two {
    Lanes scale, min;
  } of_strip[strips][fp32::kParts];
  for_tile<1, strips>([&](int, int s, int part) INLINE_BODY {
    of_strip[s][part].scale = numbers(s, part, false);
    if (has_min) of_strip[s][part].min = numbers(s, part, true);
  });
  // Otherwise compilers would keep them on the stack as well.
  totals = fp32::anew(totals);
#pragma GCC unroll 6
  for (int r = 0; r < rows; ++r) {
    Lanes scale = (Lanes)repeat_word(scales[r * stride]);
    Lanes scaled_sum = (Lanes)repeat_word(scaled_sums[r * stride]);
    for_tile<1, strips>([&](int, int s, int part) INLINE_BODY {
      float* to = totals + (r * fp32::kGroup + s) * 16 + part * kLanes;
      const Two& two = of_strip[s][part];
      Lanes total = multiply_add(__builtin_convertvector(dots[r][s][part], Lanes),
                                 two.scale * scale, load_lanes(to));
      if (has_min) total = multiply_add(two.min, scaled_sum, total);
      store(to, total);
    });
  }
}

}  // namespace native::panels
