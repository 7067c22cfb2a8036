// Three passes over a row in place: maximum, sums of exponentials, and the rank together with the
// likeliest tokens, which are collected in a short sorted list.
#include <algorithm>
#include <cmath>
#include <limits>

#include "pieces.h"

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kBlock = 512;

template <class T>
float peak_of(const T* x, int64_t size, bool& is_finite) {
  float peak = -kInfinity;
  int32_t fine = 1;
#pragma omp simd reduction(max : peak) reduction(& : fine)
  for (int64_t i = 0; i < size; ++i) {
    float value = native::to_float(x[i]);
    peak = value > peak ? value : peak;
    fine &= value < kInfinity ? 1 : 0;  // NaN is not less
  }
  is_finite = fine && peak > -kInfinity;
  return peak;
}

// Sums of e^d, d * e^d and d^2 * e^d, where d is a logit's distance from the greatest.
struct Sums {
  double mass = 0, first = 0, second = 0;

  void add(const float* x, float peak) {
    float masses = 0, firsts = 0, seconds = 0;
#pragma omp simd reduction(+ : masses, firsts, seconds)
    for (int64_t i = 0; i < kBlock; ++i) {
      float distance = x[i] - peak < -87.0f ? -87.0f : x[i] - peak;
      float share = native::exp_nonpositive(distance);
      masses += share;
      firsts += share * distance;
      seconds += share * distance * distance;
    }
    mass += masses, first += firsts, second += seconds;
  }
};

// Blocks are converted first, so that the order of a sum does not depend on the storage type.
template <class T>
Sums sums_of(const T* x, int64_t size, float peak) {
  Sums sums;
  float block[kBlock];
  for (int64_t start = 0; start < size; start += kBlock) {
    int64_t length = start + kBlock < size ? kBlock : size - start;
    for (int64_t i = 0; i < length; ++i) block[i] = native::to_float(x[start + i]);
    for (int64_t i = length; i < kBlock; ++i) block[i] = -kInfinity;
    sums.add(block, peak);
  }
  return sums;
}

// The likeliest tokens so far, the best first; the earlier one of equal tokens comes first.
struct Best {
  int64_t* ids;
  float* values;
  int64_t size, found = 0;

  bool is_full() const { return found == size; }
  float worst() const { return values[size - 1]; }

  void add(int64_t id, float value) {
    int64_t place = is_full() ? size - 1 : found++;
    for (; place > 0 && value > values[place - 1]; --place) {
      values[place] = values[place - 1];
      ids[place] = ids[place - 1];
    }
    values[place] = value;
    ids[place] = id;
  }
};

template <class T>
void score_row(const T* x, int64_t size, int64_t token_id, int64_t num_top, float& logprob,
               int64_t& rank, int64_t* top_ids, float* top_logprobs, float& entropy,
               float& varentropy, bool& is_finite) {
  float peak = peak_of(x, size, is_finite);
  if (!is_finite) {
    logprob = 0, rank = 0, entropy = 0, varentropy = 0;
    for (int64_t i = 0; i < num_top; ++i) top_ids[i] = 0, top_logprobs[i] = 0;
    return;
  }
  Sums sums = sums_of(x, size, peak);
  float sum = float(std::log(sums.mass)), own = native::to_float(x[token_id]);
  double mean = sums.first / sums.mass;
  entropy = float(std::log(sums.mass) - mean);
  varentropy = float(std::max(0.0, sums.second / sums.mass - mean * mean));
  Best best{top_ids, top_logprobs, num_top};
  int64_t greater = 0;
  for (int64_t start = 0; start < size; start += kBlock) {
    int64_t end = start + kBlock < size ? start + kBlock : size;
    float worst = num_top && best.is_full() ? best.worst() : kInfinity;
    int32_t above = 0, good = 0;
#pragma omp simd reduction(+ : above, good)
    for (int64_t i = start; i < end; ++i) {
      float value = native::to_float(x[i]);
      above += value > own ? 1 : 0;
      good += value > worst ? 1 : 0;
    }
    greater += above;
    if (best.is_full() && !good) continue;
    for (int64_t i = start; i < end; ++i) {
      float value = native::to_float(x[i]);
      if (!best.is_full() || value > best.worst()) best.add(i, value);
    }
  }
  logprob = own - peak - sum;
  rank = greater + 1;
  for (int64_t i = 0; i < num_top; ++i) top_logprobs[i] = top_logprobs[i] - peak - sum;
}

}  // namespace

extern "C" void tandem_score_tokens(int64_t dtype, const void* logits, int64_t stride,
                                    const void* token_ids, int64_t num_top, void* logprobs,
                                    void* ranks, void* top_ids, void* top_logprobs,
                                    void* entropies, void* varentropies, void* is_finite,
                                    int64_t rows, int64_t size) {
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    native::for_ranges(rows, rows * size, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row)
        score_row((const T*)logits + row * stride, size, ((const int64_t*)token_ids)[row], num_top,
                  ((float*)logprobs)[row], ((int64_t*)ranks)[row],
                  (int64_t*)top_ids + row * num_top, (float*)top_logprobs + row * num_top,
                  ((float*)entropies)[row], ((float*)varentropies)[row], ((bool*)is_finite)[row]);
    });
  });
}
