// What a row is drawn with, as `rows.py` lays it out, and what may be wrong with it.
#pragma once
#include <cstdint>

namespace {

enum Error : int64_t { kFine, kNotFinite, kNoTokenLeft };

// A row of `SamplingRows.table`.
struct Knobs {
  double inverse_temperature, top_p, min_p, typical_p;
  int64_t top_k, seed, index, position;
};

// `LogitEdits`, all rows.
struct Edits {
  const int64_t* offsets;
  const double* penalties;
  const int64_t* penalised_ids;
  const int64_t* counts;
  const int64_t* biased_ids;
  const double* biases;
  const int64_t* forbidden_ids;
};

}  // namespace
