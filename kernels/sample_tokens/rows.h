// The parameters of a row, in the layout of `rows.py`, and its possible errors.
#pragma once
#include <cstddef>
#include <cstdint>

namespace {

enum Error : int64_t { kFine, kNotFinite, kNoTokenLeft };

// A step of a row, with the numbers of `narrow_cpu.py`; `end` ends a row's list.
enum class Step : int64_t {
  end,
#define STEP(name) name,
#define LATE_STEP(name) name,
#include "columns.h"
};

// A row of `SamplingRows.table`.
struct Knobs {
#define COLUMN(type, name, neutral) type name;
#include "columns.h"
};

// Columns as Python counts them, of 8 bytes each.
enum Column : size_t {
#define COLUMN(type, name, neutral) k_##name,
#include "columns.h"
  kNumColumns
};
#define COLUMN(type, name, neutral) static_assert(offsetof(Knobs, name) == 8 * k_##name, #name);
#include "columns.h"
static_assert(sizeof(Knobs) == 8 * kNumColumns, "columns");

// `LogitEdits` of all rows.
struct Edits {
  const int64_t* offsets;
  const double* penalties;
  const int64_t* penalised_ids;
  const int64_t* counts;
  const int64_t* biased_ids;
  const double* biases;
  const int64_t* forbidden_ids;
  const uint64_t* masks;
};

}  // namespace
