// Activations as integers of one or two signed bytes, in blocks that are the groups of the weights.
//
// Rows are rounded as defined in kernels/linear_panels/digit_activations.py: an integer has one
// byte, its digit, but those of the quad with the largest numbers among each four quads of a block
// have a second, upper digit. With 32 codes up to 255 and the term of their offset, sums stay below
// 2^31.
#pragma once
#include <algorithm>
#include <limits>

#include "int16_numbers.h"
#include "int8.h"
#include "integer_dots.h"

namespace native {

constexpr int kWide = kQuads / 4;  // quads of 32 inputs with two digits

// 32 activations, rounded for weights that have `groups` groups.
template <int groups>
struct DigitBlock {
  static constexpr int kRegisters = kBlock / kLanes, kGroupQuads = kQuads / groups;

  int32_t lower[kQuads], upper[kQuads];  // four digits in a word
  int quads[kWide];                      // that have two digits, in order of groups
  float scales[groups];
  int32_t sums[groups];  // of the integers

  template <class X>
  ALWAYS_INLINE explicit DigitBlock(const X* x) {
    Lanes numbers[kRegisters];
    int32_t largest[kBlock];  // of each quad, in all four places
    for (int i = 0; i < kRegisters; ++i) {
      numbers[i] = load_lanes(x + i * kLanes);
      IntLanes most = (IntLanes)numbers[i] & 0x7fffffff;
      most = larger(most, swapped_in_quads<1>(most));
      most = larger(most, swapped_in_quads<2>(most));
      std::memcpy(largest + i * kLanes, &most, sizeof most);
    }
    Lanes inverses[groups];
    for (int g = 0; g < groups; ++g) inverses[g] = choose(largest, g);
    IntLanes integers[kRegisters];
    for (int i = 0; i < kRegisters; ++i) {
      // Adding this rounds to an integer, which is then in the sum's last bits.
      constexpr float kRounder = 0x1.8p23f;
      Lanes inverse = inverses[i * groups / kRegisters];
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
  static IntLanes larger(IntLanes a, IntLanes b) { return a > b ? a : b; }
  template <int distance>
  static IntLanes swapped_in_quads(IntLanes x) {
#if defined(__AVX512F__)
    return (IntLanes)(distance == 1 ? swap_neighbours((Lanes)x) : swap_pairs((Lanes)x));
#else
    return (IntLanes)(distance == 1 ? swap_neighbours((Lanes)x) : swap_quarters((Lanes)x));
#endif
  }

  // Chooses the quads of a group with two digits and its scale; returns what numbers are multiplied by.
  ALWAYS_INLINE Lanes choose(const int32_t* largest, int g) {
    constexpr int count = kWide / groups;
    int32_t most[kGroupQuads], above = 0, rest = 0;
    for (int q = 0; q < kGroupQuads; ++q) most[q] = largest[4 * (g * kGroupQuads + q)];
    for (int w = 0; w < count; ++w) {
      int found = 0;
      for (int q = 1; q < kGroupQuads; ++q) found = most[q] > most[found] ? q : found;
      quads[g * count + w] = g * kGroupQuads + found;
      above = std::max(above, most[found]);
      most[found] = -1;
    }
    for (int q = 0; q < kGroupQuads; ++q) rest = std::max(rest, most[q]);
    // Magnitudes have the order of their bits, and NaN is the largest.
    constexpr int32_t kInfinity = 0x7f800000;
    if (above >= kInfinity) {
      scales[g] = std::numeric_limits<float>::quiet_NaN();
      return Lanes{};
    }
    float of_two, of_one;
    std::memcpy(&of_two, &above, 4);
    std::memcpy(&of_one, &rest, 4);
    scales[g] = std::max(std::max(of_one / 127.0f, of_two / float(kMost)), kSmallest);
    return fill(1.0f / scales[g]);
  }
};

}  // namespace native
