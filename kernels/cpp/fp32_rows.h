// Rows of a product as fp32 numbers, or as integers, prepared once for all outputs: converting a bf16 or
// fp16 number where it is multiplied would take as long as the products.
#pragma once
#include "products.h"
#include "strips.h"

namespace native::fp32 {

template <class T>
struct Rows {
  const T* data;
  int64_t stride;
};

// Kinds of memory; a thread uses all of them at the same time.
template <class T>
struct NumberOfRow {
  T x;
};
template <class T>
struct NumberOfWeight {
  T x;
};

// `prepare(row, to)` writes the `stride` numbers of one row.
template <class T, class Prepare>
Rows<T> prepared(int64_t rows, int64_t stride, const Prepare& prepare) {
  auto* data = (T*)strips::scratch<NumberOfRow<T>>(rows * stride);
  for_ranges(rows, rows * stride, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) prepare(r, data + r * stride);
  });
  return {data, stride};
}

// Plain rows. Gaps keep rows of 2^n numbers from using the same places of a cache.
template <class X>
Rows<float> plain_rows(const strips::Problem& p) {
  constexpr int64_t kBetween = 16;
  return prepared<float>(p.rows, p.inputs + kBetween, [&](int64_t row, float* to) {
    const X* x = (const X*)p.x + row * p.x_stride;
    for (int64_t i = 0; i < p.inputs; i += kLanes) {
      int64_t count = std::min<int64_t>(kLanes, p.inputs - i);
      Lanes numbers = load_some(x + i, count);
      std::memcpy(to + i, &numbers, count * sizeof(float));
    }
  });
}

}  // namespace native::fp32
