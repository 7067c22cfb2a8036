// Activations as 16-bit integers, in blocks of 32.
//
// Rows are rounded as defined in kernels/linear_panels/int16_activations.py. With 32 codes up to
// 255 and the term of their offset, sums stay below 2^29.
#pragma once
#include "int16_numbers.h"
#include "int8.h"
#include "integer_dots.h"

namespace native {

struct Int16Block {
  static constexpr int kRegisters = kBlock / kLanes;

  IntLanes integers[kRegisters];
  float scale;

  template <class X>
  ALWAYS_INLINE explicit Int16Block(const X* x) {
    Lanes numbers[kRegisters], most{};
    for (int i = 0; i < kRegisters; ++i) {
      numbers[i] = load_lanes(x + i * kLanes);
      most = Int16Scale::larger_magnitude(most, numbers[i]);
    }
    Int16Scale of_all(most);
    scale = of_all.scale[0];
    for (int i = 0; i < kRegisters; ++i) integers[i] = of_all.integers(numbers[i]);
  }

  // The sum of a half of the block, which is whole registers or one.
  float sum_of_half(int half) const {
    Lanes all{};
    for (int i = half * kRegisters / 2; i < (half + 1) * kRegisters / 2; ++i)
      all += __builtin_convertvector(integers[i], Lanes);
    return sum(all);
  }

  // Stores the first and third of each four neighbours as a word, then the second and fourth.
  ALWAYS_INLINE void store_pairs(int32_t* to) const {
    for (int i = 0; i < kRegisters; ++i, to += kLanes / 2) {
      Shorts in_order = lowest_shorts(integers[i]);
#if defined(__AVX512F__)
      Shorts pairs = __builtin_shufflevector(in_order, in_order, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9,
                                             11, 12, 14, 13, 15);
#else
      Shorts pairs = __builtin_shufflevector(in_order, in_order, 0, 2, 1, 3, 4, 6, 5, 7);
#endif
      std::memcpy(to, &pairs, sizeof pairs);
    }
  }
};

}  // namespace native
