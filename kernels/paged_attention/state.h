// The state of rows after some of their keys.
#pragma once
#include <algorithm>
#include <cfloat>

#include "lanes.h"

namespace {

using native::fill;
using native::kLanes;
using native::Lanes;
using native::load_lanes;
using native::store;

constexpr float kNone = -FLT_MAX;  // A maximum over no keys.

// Running results of rows: sums of values, sums of weights by lane, and the highest score.
struct State {
  float *sums = nullptr, *totals = nullptr, *peaks = nullptr;
  int64_t rows = 0, width = 0;

  static int64_t size(int64_t rows, int64_t width) { return rows * (width + kLanes + 1); }
  State() = default;
  State(float* memory, int64_t rows, int64_t width)
      : sums(memory),
        totals(sums + rows * width),
        peaks(totals + rows * kLanes),
        rows(rows),
        width(width) {}

  void clear() {
    std::fill_n(sums, rows * (width + kLanes), 0.0f);
    std::fill_n(peaks, rows, kNone);
  }

  // Adds the results of later keys.
  __attribute__((noinline)) void merge(const State& later) {
    for (int64_t r = 0; r < rows; ++r) {
      float peak = std::max(peaks[r], later.peaks[r]);
      Lanes shrink = native::exp2_nonpositive(fill(peaks[r] - peak));
      Lanes shrink_later = native::exp2_nonpositive(fill(later.peaks[r] - peak));
      peaks[r] = peak;
      auto add = [&](float* sum, const float* addend) {
        Lanes x = load_lanes(addend);
        // Products of bf16 pairs treat such numbers as zero: it must not show whether a row's last
        // keys were skipped or had weight zero.
        x = native::larger(x, -x) < FLT_MIN ? Lanes{} : x;
        store(sum, native::multiply_add(load_lanes(sum), shrink, x * shrink_later));
      };
      for (int64_t i = r * width; i < (r + 1) * width; i += kLanes) add(sums + i, later.sums + i);
      add(totals + r * kLanes, later.totals + r * kLanes);
    }
  }
};

}  // namespace
