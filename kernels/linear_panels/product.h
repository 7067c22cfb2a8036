// One call: rows of any storage type times panels of one format. Each way to multiply them is a source of
// its own, since compilers take long over all formats and heights of tiles.
#pragma once
#include "strip_problem.h"
#include "strip_steps.h"

// In long registers without VNNI fp32 is as quick: products of pairs and their additions share two ports
// there, and have three in short ones.
#if defined(__AVX512VNNI__) || (defined(__AVX2__) && !defined(__AVX512F__))
#define TANDEM_INT16_ROWS
#endif

namespace native::panels {

// What codes are: integers, 4-bit places in a list of 8-bit ones, or numbers of few bits. `panels.py` has
// the same.
enum class Meaning : int64_t { kIntegers, kIq4, kNf4, kFp4, kFp8 };

constexpr bool is_integer(Meaning meaning) { return meaning <= Meaning::kIq4; }

// How weights are put together: a code minus the offset times its group's scale, or plus its minimum.
struct Format {
  int64_t bits, group, scale_dtype;
  bool has_min;
  int64_t offset;
  Meaning meaning;
};

struct Product {
  strips::Problem problem;
  int64_t dtype;  // of rows and results
  const uint8_t* panels;
  Format format;
};

void multiply_in_fp32(const Product& product);
// Rows of fewer bits than fp32 as integers.
void multiply_in_int16(const Product& product);
void multiply_in_int8(const Product& product);
// Rows of bf16, where pairs of them are multiplied as fast as integers: by the matrix unit, and by processors
// of other makers. Intel's take two cycles for what AMD's do in one.
bool pairs_are_fast();
void multiply_in_pairs(const Product& product);

}  // namespace native::panels
