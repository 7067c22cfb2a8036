// `reference.near_peak` and `reference.dynamic_scale`, which depend on all logits of a row.
#pragma once
#include <algorithm>
#include <cmath>

#include "noise.h"
#include "weights.h"

namespace {

inline int32_t unit_exponent(int64_t size) {
  int32_t exponent = 62;
  for (int64_t rest = size; rest; rest >>= 1) --exponent;
  return exponent;
}

// Makes tokens far below the peak impossible, in place. `num_bits`: bits of a distance, half of
// those of a total over the possible tokens.
inline void keep_near_peak(float* x, int64_t size, float peak, double num_sigmas,
                           int32_t num_bits) {
  float half = peak * 0.5f, largest = 0.0f;
  auto distance = [&](float value) { return value > -kInfinity ? half - value * 0.5f : 0.0f; };
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < size; ++i) largest = std::max(largest, distance(x[i]));
  int32_t exponent = std::max(num_bits, int32_t(bits_of(largest) >> 23));
  float power = float_of(uint32_t(num_bits + 253 - exponent) << 23);
  int64_t possible = 0, sum = 0, squares = 0;
#pragma omp simd reduction(+ : possible, sum, squares)
  for (int64_t i = 0; i < size; ++i) {
    int64_t place = int32_t(distance(x[i]) * power);
    possible += x[i] > -kInfinity ? 1 : 0;
    sum += place;
    squares += place * place;
  }
  double num = double(possible), total = double(sum);
  double variance = num * double(squares) - total * total;
  double bound = num_sigmas * num_sigmas * variance;
  int32_t low = 0, high = int32_t((int64_t(1) << num_bits) - 1);
  while (low < high) {
    int32_t middle = low + (high - low + 1) / 2;
    double reached = double(middle) * num;
    if (reached * reached <= bound) low = middle;
    else high = middle - 1;
  }
#pragma omp simd
  for (int64_t i = 0; i < size; ++i)
    x[i] = int32_t(distance(x[i]) * power) > low ? -kInfinity : x[i];
}

inline float dynamic_scale(const Knobs& knobs, const float* x, int64_t size, float peak,
                           int32_t exponent) {
  int64_t possible = 0, masses = 0, weighted = 0;
  Weighing weighing{peak, 1.0f, exponent};
  for (int64_t i = 0; i < size; ++i) {
    int64_t mass = int64_t(weighing.weight(x[i]));
    possible += x[i] > -kInfinity ? 1 : 0;
    masses += mass;
    weighted += int64_t(float(mass) * -weighing.score(x[i]));
  }
  if (possible < 2) return float(knobs.inverse_temperature);
  float total = float(masses);
  float entropy = logarithm(total * float_of(uint32_t(127 - exponent) << 23));
  entropy += float(weighted) * reciprocal(total);
  float share = entropy * reciprocal(logarithm(float(possible)));
  share = std::min(std::max(share, 1e-30f), 1.0f);
  float power = float(knobs.dynatemp_exponent) * logarithm(share);
  float low = float(std::max(0.0, knobs.temperature - knobs.dynatemp_range));
  float high = float(knobs.temperature + knobs.dynatemp_range);
  float temperature = low + (high - low) * Weighing{0.0f, 1.0f, 0}.weight(power);
  return reciprocal(std::max(temperature, 1e-5f));
}

}  // namespace
