// `edits.py`: what penalties, biases and bans make of a row.
#pragma once
#include "float_bits.h"
#include "rows.h"

namespace {

// fp32, kept finite, except that a token that was impossible stays so.
inline float finite(double changed, float before) {
  constexpr double kMost = std::numeric_limits<float>::max();
  if (before == -kInfinity) return before;
  return float(changed > kMost ? kMost : changed < -kMost ? -kMost : changed);
}

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
  for (int list = 0; list < 3; ++list) {
    const int64_t* offsets = edits.offsets + list * (rows + 1);
    if (offsets[row] < offsets[row + 1]) return true;
  }
  return false;
}

}  // namespace
