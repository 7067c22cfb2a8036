// Applies penalties, biases and bans to a row, as `edits.py` does.
#pragma once
#include <algorithm>

#include "float_bits.h"
#include "native.h"
#include "rows.h"

namespace {

// Converts to fp32 and keeps it finite, except that a token that was impossible stays impossible.
inline float finite(double changed, float before) {
  constexpr double kMost = std::numeric_limits<float>::max();
  if (before == -kInfinity) return before;
  return float(changed > kMost ? kMost : changed < -kMost ? -kMost : changed);
}

// Makes those of up to 64 tokens impossible whose bit is not set.
inline void exclude(float* x, uint64_t bits, int length) {
  if (bits == ~uint64_t(0)) return;
  uint32_t set[64];
#pragma omp simd
  for (int j = 0; j < 64; ++j) set[j] = uint32_t(bits >> j) & 1;
#pragma omp simd
  for (int j = 0; j < length; ++j) x[j] = set[j] ? x[j] : -kInfinity;
}

// The row's mask: a bit for each token that may be drawn. Null if it has none.
const uint64_t* mask_of(const Edits& edits, int64_t size, int64_t row, int64_t rows) {
  const int64_t* masked = edits.offsets + 3 * (rows + 1);
  if (masked[row] == masked[row + 1]) return nullptr;
  return edits.masks + masked[row] * ((size + 63) / 64);
}

// Converts a row to fp32. Tokens that its mask forbids are impossible from the start, as no other
// edit changes that; where the mask allows few tokens, little of the row is read.
template <class T>
void copy(float* x, const T* logits, int64_t size, const uint64_t* mask) {
  for (int64_t start = 0; start < size; start += 64) {
    int length = int(std::min<int64_t>(64, size - start));
    uint64_t bits = mask ? mask[start / 64] : ~uint64_t(0);
    if (bits == 0) {
      std::fill_n(x + start, length, -kInfinity);
      continue;
    }
    for (int j = 0; j < length; ++j) x[start + j] = native::to_float(logits[start + j]);
    exclude(x + start, bits, length);
  }
}

// Applies all edits but the mask.
void edit(float* x, const Edits& edits, int64_t row, int64_t rows) {
  const double* penalties = edits.penalties + row * 3;
  for (int64_t i = edits.offsets[row]; i < edits.offsets[row + 1]; ++i) {
    float& logit = x[edits.penalised_ids[i]];
    double value = logit, count = double(edits.counts[i]);
    double changed = value > 0 ? value / penalties[0] : value * penalties[0];
    changed -= count * penalties[1] + (count > 0 ? 1.0 : 0.0) * penalties[2];
    logit = finite(changed, logit);
  }
  const int64_t* biased = edits.offsets + (rows + 1);
  for (int64_t i = biased[row]; i < biased[row + 1]; ++i) {
    float& logit = x[edits.biased_ids[i]];
    logit = finite(double(logit) + edits.biases[i], logit);
  }
  const int64_t* forbidden = biased + (rows + 1);
  for (int64_t i = forbidden[row]; i < forbidden[row + 1]; ++i)
    x[edits.forbidden_ids[i]] = -kInfinity;
}

bool is_edited(const Edits& edits, int64_t row, int64_t rows) {
  for (int list = 0; list < 4; ++list) {
    const int64_t* offsets = edits.offsets + list * (rows + 1);
    if (offsets[row] < offsets[row + 1]) return true;
  }
  return false;
}

}  // namespace
