// Activations as integers of one or two signed bytes, in blocks that are the groups of the weights.
//
// Rows are rounded as defined in kernels/linear_panels/digit_activations.py: an integer has one
// byte, its digit, but those of the quad with the largest numbers among each four quads of a block
// have a second, upper digit. With 32 codes up to 255 and the term of their offset, sums stay below
// 2^31.
#pragma once
#include <algorithm>

#include "int16_numbers.h"
#include "int8.h"
#include "integer_dots.h"

namespace native {

constexpr int kWide = kQuads / 4;  // quads of 32 inputs with two digits

// One number for each quad of a block, in order.
typedef int32_t OfQuads __attribute__((vector_size(4 * kQuads)));
typedef float FloatOfQuads __attribute__((vector_size(4 * kQuads)));

// 32 activations in bf16, rounded for weights that have `groups` groups.
template <int groups>
struct DigitBlock {
  static constexpr int kRegisters = kBlock / kLanes;

  int32_t lower[kQuads], upper[kQuads];  // four digits in a word
  int quads[kWide];                      // that have two digits, in order of groups
  float scales[groups];
  int32_t sums[groups];  // of the integers

  ALWAYS_INLINE explicit DigitBlock(const BFloat16* x) {
    Lanes numbers[kRegisters];
    IntLanes magnitudes[kRegisters];
    for (int i = 0; i < kRegisters; ++i) {
      numbers[i] = load_lanes(x + i * kLanes);
      magnitudes[i] = (IntLanes)numbers[i] & 0x7fffffff;
    }
    FloatOfQuads inverses = choose(largest_of_quads(magnitudes));
    IntLanes integers[kRegisters];
    for (int i = 0; i < kRegisters; ++i) {
      // Adding this rounds to an integer, which is then in the sum's last bits.
      constexpr float kRounder = 0x1.8p23f;
      Lanes inverse = fill(inverses[i * groups / kRegisters * kGroupQuads]);
      // A number that is not finite makes others of its group zeros.
      IntLanes rounded = (IntLanes)multiply_add(numbers[i], inverse, fill(kRounder)) - 0x4b400000;
      integers[i] = inverse == 0.0f ? IntLanes{} : rounded;
      Bytes low = lowest_bytes(integers[i]), high = lowest_bytes((integers[i] + 128) >> 8);
      std::memcpy((char*)lower + i * kLanes, &low, sizeof low);
      std::memcpy((char*)upper + i * kLanes, &high, sizeof high);
    }
    for (int g = 0; g < groups; ++g) {
      IntLanes all{};
      for (int i = g * kRegisters / groups; i < (g + 1) * kRegisters / groups; ++i)
        all += integers[i];
      sums[g] = int32_t(sum(__builtin_convertvector(all, Lanes)));
    }
  }

  // All words; returns the next place.
  int32_t* store_all(int32_t* to) const {
    to = std::copy_n(upper, kQuads, to);
    return std::copy_n(lower, kQuads, to);
  }

  // The lower words, then the upper ones of wide quads and the places of their codes.
  int32_t* store_wide(int32_t* to) const {
    to = std::copy_n(lower, kQuads, to);
    for (int w = 0; w < kWide; ++w) to[w] = upper[quads[w]], to[kWide + w] = quads[w] * kOutputs;
    return to + 2 * kWide;
  }

 private:
  static constexpr int kGroupQuads = kQuads / groups;

  template <class V>
  static V larger(V a, V b) {
    return a > b ? a : b;
  }

  static ALWAYS_INLINE OfQuads largest_of_quads(const IntLanes* x) {
#if defined(__AVX512F__)
    IntLanes y = larger(
        __builtin_shufflevector(x[0], x[1], 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30),
        __builtin_shufflevector(x[0], x[1], 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31));
    y = larger(y, (IntLanes)swap_neighbours((Lanes)y));
    return __builtin_shufflevector(y, y, 0, 4, 8, 12, 2, 6, 10, 14);
#else
    auto pairs = [](IntLanes a, IntLanes b) INLINE_BODY {
      return larger(__builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14),
                    __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15));
    };
    IntLanes y = pairs(pairs(x[0], x[1]), pairs(x[2], x[3]));
    return __builtin_shufflevector(y, y, 0, 4, 1, 5, 2, 6, 3, 7);
#endif
  }

  static ALWAYS_INLINE OfQuads largest_of_group(OfQuads x) {
    x = larger(x, __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6));
    x = larger(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5));
    return groups == 1 ? larger(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3)) : x;
  }

  // Chooses each group's quads with two digits and its scale; returns what numbers are multiplied by.
  ALWAYS_INLINE FloatOfQuads choose(OfQuads largest) {
    // Magnitudes have the order of their bits, and NaN is the largest. The lowest bits of bf16 numbers
    // are free for the place, so that none are equal and the first is found.
    constexpr OfQuads kPlaces{7, 6, 5, 4, 3, 2, 1, 0};
    constexpr int32_t kInfinity = 0x7f800000;
    largest |= kPlaces;
    OfQuads most = largest_of_group(largest), rest = most;
    OfQuads is_finite = most < kInfinity;
    for (int w = 0; w < kWide / groups; ++w) {
      for (int g = 0; g < groups; ++g)
        quads[g * (kWide / groups) + w] = kQuads - 1 - (rest[g * kGroupQuads] & 7);
      largest = largest == rest ? OfQuads{} : largest;
      rest = largest_of_group(largest);
    }
    FloatOfQuads of_two = (FloatOfQuads)(most & ~7), of_one = (FloatOfQuads)(rest & ~7);
    FloatOfQuads scale = larger(of_one / 127.0f, of_two / float(kMost));
    scale = larger(scale, FloatOfQuads{} + kSmallest);
    FloatOfQuads inverse = (FloatOfQuads)((OfQuads)(1.0f / scale) & is_finite);
    // All bits set are NaN.
    scale = (FloatOfQuads)((OfQuads)scale | ~is_finite);
    for (int g = 0; g < groups; ++g) scales[g] = scale[g * kGroupQuads];
    return inverse;
  }
};

}  // namespace native
