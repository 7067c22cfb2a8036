// Copies, converts and checks hundreds of small matrices in one call, on the caller's thread.
#include <algorithm>
#include <type_traits>

#include "vec.h"

namespace {

using namespace native;

// A row of the caller's table. `from` has `count` numbers; `columns` is their row length if the
// target has them transposed, or 0 if it has them in the same order. `rest` zeros follow.
struct Copy {
  int64_t from_type, to_type;
  const char* from;
  char* to;
  int64_t count, columns, rest;
};
constexpr int64_t kBytes = -1;  // a type whose numbers are neither converted nor checked

constexpr int64_t kVec = 16;

// Whether all numbers are finite: infinity and NaN have all bits of the exponent set.
template <class From, class To>
bool convert(const From* from, int64_t count, To* to) {
  Words most{};
  auto step = [&](const From* from, To* to) {
    store(to, load(from));
    Words size = (Words)load(to) & 0x7fffffffu;
    most = size > most ? size : most;
  };
  int64_t i = 0;
  for (; i + kVec <= count; i += kVec) step(from + i, to + i);
  if (i < count) {
    From given[kVec] = {};
    To taken[kVec];
    std::copy_n(from + i, count - i, given);
    step(given, taken);
    std::copy_n(taken, count - i, to + i);
  }
  for (int lane = 0; lane < kVec; ++lane)
    if (most[lane] >= 0x7f800000u) return false;
  return true;
}

// Copies transposed rows, a few at a time, so that they stay in the first-level cache between being
// written and read.
template <class From, class To>
bool convert_turned(const From* from, int64_t rows, int64_t columns, To* to) {
  constexpr int64_t kNumbers = 2048;
  To some[kNumbers];
  bool is_finite = true;
  int64_t width = std::min(columns, kNumbers);
  for (int64_t left = 0; left < columns; left += width) {
    int64_t taken = std::min(width, columns - left);
    int64_t height = kNumbers / width;
    for (int64_t top = 0; top < rows; top += height) {
      int64_t end = std::min(rows, top + height);
      for (int64_t row = top; row < end; ++row)
        is_finite &= convert(from + row * columns + left, taken, some + (row - top) * width);
      for (int64_t column = 0; column < taken; ++column)
        for (int64_t row = top; row < end; ++row)
          to[(left + column) * rows + row] = some[(row - top) * width + column];
    }
  }
  return is_finite;
}

template <class From, class To>
bool run(const Copy& copy) {
  auto* from = (const From*)copy.from;
  auto* to = (To*)copy.to;
  std::fill_n(copy.to + copy.count * sizeof(To), copy.rest * sizeof(To), 0);
  if (copy.columns == 0) return convert(from, copy.count, to);
  return convert_turned(from, copy.count / copy.columns, copy.columns, to);
}

bool run(const Copy& copy) {
  if (copy.from_type == kBytes) {
    std::copy_n(copy.from, copy.count, copy.to);
    std::fill_n(copy.to + copy.count, copy.rest, 0);
    return true;
  }
  bool is_finite = false;
  with_type(copy.from_type, [&](auto* from) {
    with_type(copy.to_type, [&](auto* to) {
      is_finite = run<std::remove_pointer_t<decltype(from)>, std::remove_pointer_t<decltype(to)>>(copy);
    });
  });
  return is_finite;
}

}  // namespace

// `first_wrong`: the index of the first copy with a number that is not finite, or -1.
extern "C" void tandem_copy_matrices(const void* copies, int64_t count, int64_t* first_wrong) {
  *first_wrong = -1;
  for (int64_t i = 0; i < count; ++i)
    if (!run(((const Copy*)copies)[i]) && *first_wrong < 0) *first_wrong = i;
}
