// Steps that leave tokens out of a row's candidates, which know their masses: `reference.STEPS`.
#pragma once
#include <algorithm>
#include <climits>
#include <cmath>
#include <vector>

#include "candidates.h"
#include "noise.h"
#include "weights.h"

namespace {

struct Scratch {
  std::vector<float> values, weights, maxima;
  std::vector<int32_t> ids, keys;
  std::vector<int64_t> masses;

  // No candidates yet, with room for so many.
  Candidates candidates(int64_t size) {
    ids.resize(size);
    keys.resize(size);
    masses.resize(size);
    weights.resize(size);
    return {ids.data(), keys.data(), masses.data()};
  }
};

// The least mass of a token that a nucleus may hold. Those below (1 - p) / n of the mass of n
// tokens hold less than 1 - p together; half of that leaves room for rounding.
inline int64_t nucleus_bound(double top_p, int64_t total, int64_t size) {
  double spared = top_p < 1.0 ? (1.0 - top_p) * double(total) : 0.0;
  return std::max<int64_t>(1, int64_t(spared) / size / 2 + 1);
}

// The least mass that min_p leaves.
inline int64_t min_p_bound(double min_p, int32_t exponent) {
  return std::max<int64_t>(1, int64_t(min_p * double(int64_t(1) << exponent)));
}

// See `reference.typical_p`. `x` are the values by id.
inline void keep_typical(Candidates& some, const float* x, const Weighing& weighing, double p) {
  int64_t total = some.total(), weighted = 0;
  for (int64_t i = 0; i < some.size; ++i)
    weighted += int64_t(float(some.masses[i]) * -weighing.score(x[some.ids[i]]));
  float mean = float(weighted) * reciprocal(float(total));
  for (int64_t i = 0; i < some.size; ++i)
    some.keys[i] = -int32_t(bits_of(std::fabs(-weighing.score(x[some.ids[i]]) - mean)));
  some.cut(needed_mass(p, total), true, true);
}

// See `reference.xtc`.
inline bool excludes_top_choices(const Knobs& knobs) {
  if (!(knobs.xtc_probability > 0.0) || knobs.xtc_threshold > 0.5) return false;
  const uint32_t blocks[kLanes] = {};
  return int64_t(philox(knobs, blocks, 2).of[0][0]) < int64_t(knobs.xtc_probability * 0x1p32);
}

// The least likely of some tokens, of equals the last; -1 if there are none.
template <class Function>
int64_t last_choice(const int32_t* ids, int64_t size, const float* x, Function is_choice) {
  int64_t last = -1;
  int32_t last_key = INT_MAX;
  for (int64_t i = 0; i < size; ++i) {
    int32_t key = order_key(x[ids[i]]);
    if (is_choice(i) && key <= last_key) last = ids[i], last_key = key;
  }
  return last;
}

inline void exclude_top_choices(Candidates& some, const float* x, double threshold) {
  int64_t bound = needed_mass(threshold, some.total());
  int64_t last = last_choice(some.ids, some.size, x,
                             [&](int64_t i) { return some.masses[i] >= bound; });
  some.keep_if([&](int64_t i) { return some.masses[i] < bound || some.ids[i] == last; });
}

}  // namespace
