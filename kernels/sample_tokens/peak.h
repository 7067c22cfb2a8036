// The greatest logit of a row.
#pragma once
#include <algorithm>

#include "float_bits.h"
#include "native.h"

namespace {

struct Peak {
  float value = -kInfinity;
  int64_t first = 0;      // index of the first maximum
  bool is_bad = false;    // NaN or +infinity among them
};

template <class T>
Peak find_peak(const T* x, int64_t size) {
  Peak peak;
  int64_t best_start = 0;
  constexpr int64_t kStep = 512;
  for (int64_t start = 0; start < size; start += kStep) {
    int64_t length = std::min(kStep, size - start);
    float most = -kInfinity;
    int32_t fine = 1;
#pragma omp simd reduction(max : most) reduction(& : fine)
    for (int64_t i = 0; i < length; ++i) {
      float value = native::to_float(x[start + i]);
      most = value > most ? value : most;
      fine &= value < kInfinity ? 1 : 0;
    }
    if (!fine) peak.is_bad = true;
    if (most > peak.value) peak.value = most, best_start = start;
  }
  for (peak.first = best_start; peak.first < size; ++peak.first)
    if (native::to_float(x[peak.first]) == peak.value) break;
  return peak;
}

inline bool is_finite(const Peak& peak) { return !peak.is_bad && peak.value > -kInfinity; }

}  // namespace
