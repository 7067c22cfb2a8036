// A call: rows of any storage type times panels of one format. Each way to multiply has a source of
// its own, since compilers take long over all formats and heights of tiles.
#pragma once
#include <cstring>

#include "strip_problem.h"
#include "strip_steps.h"

// Rows of fewer bits than fp32 become integers: bf16 ones with one or two digits, where bytes are
// multiplied in one instruction, ...
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define TANDEM_DIGIT_ROWS
#endif
// ... others of 16 bits. In long registers without VNNI fp32 is as quick: there, products of pairs
// and their additions share two ports, while in short ones they have three.
#if defined(__AVX512VNNI__) || (defined(__AVX2__) && !defined(__AVX512F__))
#define TANDEM_INT16_ROWS
#endif

namespace native::panels {

// The meanings of codes: integers, 4-bit places in a list of 8-bit ones, or numbers of few bits.
// `panels.py` has the same.
enum class Meaning : int64_t { kIntegers, kIq4, kNf4, kFp4, kFp8, kE2m1 };

constexpr bool is_integer(Meaning meaning) { return meaning <= Meaning::kIq4; }

// A type of scales beside the storage types: integers of 8 bits, to be multiplied by factors.
constexpr int64_t kInt8 = 3;

// The formula of weights: a code minus the offset times its group's scale, or plus its minimum.
struct Format {
  int64_t bits, group, scale_dtype;
  bool has_min;
  int64_t offset;
  Meaning meaning;

  // What the offset or the minimum of a group meets, as bits: the sum of a row's integers times
  // -offset, or times their scale.
  int32_t factor(float scale, int32_t sum) const {
    if (!has_min) return -int32_t(offset) * sum;
    float scaled = scale * float(sum);
    int32_t bits;
    std::memcpy(&bits, &scaled, sizeof bits);
    return bits;
  }
};

struct Product {
  strips::Problem problem;
  int64_t dtype;  // of rows and results
  const uint8_t* panels;
  Format format;
};

void multiply_in_fp32(const Product& product);
// Multiply rows of fewer bits than fp32 by codes that are integers.
void multiply_in_digits(const Product& product);
void multiply_in_int16(const Product& product);
void multiply_in_int8(const Product& product);
// Whether rows of bf16 are multiplied in pairs: by the matrix unit, and else, where pairs are as fast
// as fp32, by numbers that are not integers. Intel's take two cycles where AMD's take one.
bool multiplies_pairs(Meaning of_codes);
void multiply_in_pairs(const Product& product);

}  // namespace native::panels
