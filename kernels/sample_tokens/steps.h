// Steps that leave tokens out of a row's candidates, whose masses are known: `reference.STEPS`. The
// late ones of `columns.h` are structs, which decide whether they act on a row, and which tokens
// they leave.
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

  // Returns an empty list of candidates with room for `size`.
  Candidates candidates(int64_t size) {
    ids.resize(size);
    keys.resize(size);
    masses.resize(size);
    weights.resize(size);
    return {ids.data(), keys.data(), masses.data()};
  }
};

// The least mass of a token that a nucleus may hold. Tokens below (1 - p) / n of the mass of n
// tokens hold less than 1 - p together; half of that leaves room for rounding.
inline int64_t nucleus_bound(double top_p, int64_t total, int64_t size) {
  double spared = top_p < 1.0 ? (1.0 - top_p) * double(total) : 0.0;
  return std::max<int64_t>(1, int64_t(spared) / size / 2 + 1);
}

// The least mass that min_p keeps.
inline int64_t min_p_bound(double min_p, int32_t exponent) {
  return std::max<int64_t>(1, int64_t(min_p * double(int64_t(1) << exponent)));
}

// The least likely of some tokens, the last of equal ones; -1 if there are none.
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

namespace late {

// `x` are the values by id.
struct typical_p {
  static bool acts(const Knobs& knobs) { return knobs.typical_p < 1.0; }

  static void leave(Candidates& some, const float* x, const Weighing& weighing,
                    const Knobs& knobs) {
    int64_t total = some.total(), weighted = 0;
    for (int64_t i = 0; i < some.size; ++i)
      weighted += int64_t(float(some.masses[i]) * -weighing.score(x[some.ids[i]]));
    float mean = float(weighted) * reciprocal(float(total));
    for (int64_t i = 0; i < some.size; ++i)
      some.keys[i] = -int32_t(bits_of(std::fabs(-weighing.score(x[some.ids[i]]) - mean)));
    some.cut(needed_mass(knobs.typical_p, total), true, true);
  }
};

struct xtc {
  static bool acts(const Knobs& knobs) {
    if (!(knobs.xtc_probability > 0.0) || knobs.xtc_threshold > 0.5) return false;
    const uint32_t blocks[kLanes] = {};
    return int64_t(philox(knobs, blocks, 2).of[0][0]) < int64_t(knobs.xtc_probability * 0x1p32);
  }

  static void leave(Candidates& some, const float* x, const Weighing&, const Knobs& knobs) {
    int64_t bound = needed_mass(knobs.xtc_threshold, some.total());
    int64_t last = last_choice(some.ids, some.size, x,
                               [&](int64_t i) { return some.masses[i] >= bound; });
    some.keep_if([&](int64_t i) { return some.masses[i] < bound || some.ids[i] == last; });
  }
};

}  // namespace late

// The late steps that act on a row, one bit each.
class LateSteps {
 public:
  explicit LateSteps(const Knobs& knobs) {
#define LATE_STEP(name) \
  if (late::name::acts(knobs)) bits_ |= bit(Step::name);
#include "columns.h"
  }

  bool has(Step step) const { return bits_ & bit(step); }
  bool has_others_than(Step step) const { return bits_ & ~bit(step); }

  // Applies the steps that act, one after the other.
  void leave(Candidates& some, const float* x, const Weighing& weighing, const Knobs& knobs) const {
#define LATE_STEP(name) \
  if (has(Step::name)) late::name::leave(some, x, weighing, knobs);
#include "columns.h"
  }

  // Applies one of the steps, if it acts.
  void leave(Step step, Candidates& some, const float* x, const Weighing& weighing,
             const Knobs& knobs) const {
    LateSteps one = *this;
    one.bits_ &= bit(step);
    one.leave(some, x, weighing, knobs);
  }

 private:
  static int64_t bit(Step step) { return int64_t(1) << int64_t(step); }

  int64_t bits_ = 0;
};

}  // namespace
