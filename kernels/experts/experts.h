// The division of a step's rows among experts, and of experts among threads.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "pieces.h"

// linear_packed/cpu.cpp, linear_panels/cpu.cpp
extern "C" void tandem_linear_packed(int64_t dtype, const void* x, int64_t x_stride,
                                     const void* weight, const float* bias, void* out,
                                     int64_t rows, int64_t inputs, int64_t strips, int64_t outputs,
                                     int64_t fp32_out);
extern "C" void tandem_linear_panels(int64_t dtype, const void* x, int64_t x_stride, int64_t rows,
                                     int64_t blocks, const void* weight, int64_t bits,
                                     int64_t group, int64_t scale_dtype, int64_t has_min,
                                     int64_t offset, int64_t meaning, int64_t int8_activations,
                                     const float* bias, int64_t fp32_out, void* out,
                                     int64_t outputs);

namespace native::experts {

// The rows to multiply: rows of x, [.., inputs] with `size` bytes a number, by these indices, or
// all.
struct Rows {
  const char* x;
  int64_t stride;
  const int64_t* numbers;
  int64_t inputs, size;

  const char* at(int64_t i) const { return x + (numbers ? numbers[i] : i) * stride * size; }
};

// One expert's share: rows first .. first + rows - 1 of the result are made from `x`.
struct Share {
  int64_t expert, first, rows;
  const void* x;
  int64_t x_stride;
};

// The bias of a share's expert; null if there is none.
inline const float* bias_of(const float* bias, const Share& one, int64_t outputs) {
  return bias ? bias + one.expert * outputs : nullptr;
}

// Returns the expert's rows of x side by side, copied to `memory` unless they are so already.
inline Share share_of(int64_t expert, const int64_t* starts, const Rows& rows,
                      std::vector<char>& memory) {
  int64_t first = starts[expert], count = starts[expert + 1] - first;
  if (!rows.numbers || count == 1) return {expert, first, count, rows.at(first), rows.stride};
  int64_t row_bytes = rows.inputs * rows.size;
  if (int64_t(memory.size()) < count * row_bytes) memory.resize(count * row_bytes);
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(memory.data() + i * row_bytes, rows.at(first + i), row_bytes);
  return {expert, first, count, memory.data(), rows.inputs};
}

// Calls `multiply(share)` for each expert that has rows. If there are several experts for each
// thread, a thread takes one at a time and multiplies alone, so that threads do not wait for each
// other. Otherwise all threads share each product.
template <class Multiply>
void for_experts(const int64_t* starts, int64_t experts, const Rows& rows, Multiply multiply) {
  std::vector<int64_t> wanted;
  for (int64_t e = 0; e < experts; ++e)
    if (starts[e] < starts[e + 1]) wanted.push_back(e);
  constexpr int64_t kEach = 4;  // experts per thread, since the last one is waited for
  int64_t count = int64_t(wanted.size()), threads = num_threads();
  auto work = [&](Pieces& pieces) {
    std::vector<char> memory;
    for (int64_t i; pieces.take(i);) multiply(share_of(wanted[i], starts, rows, memory));
  };
  if (count >= kEach * threads) return share_pieces(count, threads, work);
  Pieces all(count);
  work(all);
}

}  // namespace native::experts
