// Low-rank updates of rows with different adapters: shrink every row to the rank, then expand.
// An element's sum is one thread's, in one order: other rows do not change it.
#include <algorithm>
#include <numeric>
#include <vector>

#include "pieces.h"

namespace {

constexpr int64_t kOutputs = 64;  // that a thread expands at a time

template <class T>
float dot(const T* x, const T* y, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += native::to_float(x[i]) * native::to_float(y[i]);
  return sum;
}

// `count` rows of b, [count, rank], as fp32 columns: [rank, kOutputs], so that outputs are added
// up side by side.
template <class T>
void transpose(const T* b, int64_t count, int64_t rank, float* columns) {
  for (int64_t n = 0; n < count; ++n)
    for (int64_t r = 0; r < rank; ++r) columns[r * kOutputs + n] = native::to_float(b[n * rank + r]);
}

template <class T>
void expand(const float* inner, const float* columns, float scale, int64_t count, int64_t rank,
            T* y) {
  float update[kOutputs] = {};
  for (int64_t r = 0; r < rank; ++r)
    for (int64_t n = 0; n < kOutputs; ++n) update[n] += inner[r] * columns[r * kOutputs + n];
  for (int64_t n = 0; n < count; ++n)
    y[n] = native::from_float<T>(native::to_float(y[n]) + scale * update[n]);
}

template <class T>
void gather(T* y, int64_t y_stride, const T* x, int64_t x_stride, const T* a, const T* b,
            const int32_t* ids, const float* scales, int64_t rows, int64_t outputs, int64_t size,
            int64_t rank) {
  std::vector<float> inner(rows * rank);
  // Rows with the same adapter one after the other: each block of it is transposed once.
  std::vector<int64_t> order(rows);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t left, int64_t right) { return ids[left] < ids[right]; });
  int64_t blocks = (outputs + kOutputs - 1) / kOutputs;
  native::for_ranges(rows * rank, rows * rank * size, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t row = order[i / rank], r = i % rank, adapter = ids[row];
      if (adapter >= 0)
        inner[row * rank + r] = dot(x + row * x_stride, a + (adapter * rank + r) * size, size);
    }
  });
  native::for_ranges(blocks, rows * rank * outputs, [&](int64_t begin, int64_t end) {
    std::vector<float> columns(rank * kOutputs);
    for (int64_t block = begin; block < end; ++block) {
      int64_t first = block * kOutputs, count = std::min(outputs - first, kOutputs);
      int64_t adapter = -1;
      for (int64_t row : order) {
        if (ids[row] < 0) continue;
        if (ids[row] != adapter) {
          adapter = ids[row];
          transpose(b + (adapter * outputs + first) * rank, count, rank, columns.data());
        }
        expand(&inner[row * rank], columns.data(), scales[adapter], count, rank,
               y + row * y_stride + first);
      }
    }
  });
}

}  // namespace

extern "C" void tandem_lora_gather(int64_t dtype, void* y, int64_t y_stride, const void* x,
                                   int64_t x_stride, const void* a, const void* b,
                                   const int32_t* ids, const float* scales, int64_t rows,
                                   int64_t outputs, int64_t size, int64_t rank) {
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    gather((T*)y, y_stride, (const T*)x, x_stride, (const T*)a, (const T*)b, ids, scales, rows,
           outputs, size, rank);
  });
}
