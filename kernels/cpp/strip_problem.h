// The arguments of a product by strips, and the place of its results.
#pragma once
#include <algorithm>
#include <vector>

#include "native.h"
#include "vec.h"

namespace native::strips {

constexpr int kStrips = 4;  // of a tile

// Memory of this thread for numbers of one kind, kept from call to call: new memory would have to
// be allocated and cleared for every product.
template <class T>
T* scratch(int64_t count) {
  thread_local std::vector<T, AlignedAllocator<T>> memory;
  if (int64_t(memory.size()) < count) memory.resize(count);
  return memory.data();
}

struct Problem {
  const void* x;
  int64_t x_stride;
  const float* bias;
  void* out;
  int64_t rows, inputs, strips, outputs;  // inputs: padded to whole steps
  bool fp32_out;
};

// Some inputs of neighbouring strips: [strips][inputs / kInputs, 16, kInputs], `stride` apart.
template <class X>
struct Piece {
  const X* data;
  int64_t stride;
  bool fetches;  // whether to fetch the next strips, which are `strips * stride` further
};

template <class T>
void write(T* out, Vec sums, const float* bias, int64_t columns) {
  if (columns == 16) return store(out, bias ? sums + load(bias) : sums);
  if (bias)
    for (int64_t c = 0; c < columns; ++c) sums[c] += bias[c];
  for (int64_t c = 0; c < columns; ++c) out[c] = from_float<T>(sums[c]);
}

// Finishes one row's 16 sums of a strip.
template <class X>
void finish(const Problem& p, int64_t row, int64_t strip, Vec sums) {
  int64_t at = strip * 16, columns = std::min<int64_t>(16, p.outputs - at);
  const float* bias = p.bias ? p.bias + at : nullptr;
  if (p.fp32_out) return write((float*)p.out + row * p.outputs + at, sums, bias, columns);
  write((X*)p.out + row * p.outputs + at, sums, bias, columns);
}

// Results go to memory that has not been read lately, so it is fetched while they are computed.
template <class X, int strips>
void fetch_output(const Problem& p, int64_t row, int64_t strip) {
  int64_t size = p.fp32_out ? sizeof(float) : sizeof(X);
  const char* out = (const char*)p.out + (row * p.outputs + strip * 16) * size;
  for (int64_t at = 0; at < strips * 16 * size; at += 64) __builtin_prefetch(out + at, 1);
}

// Finishes rows of kStrips sums, [rows][kStrips][16], of which `strips` are used.
template <class X>
void finish_rows(const Problem& p, int64_t row, int64_t rows, int64_t strip, int64_t strips,
                 const float* sums) {
  constexpr int64_t kAhead = 16;
  for (int64_t r = 0; r < rows; ++r, sums += kStrips * 16) {
    if (r + kAhead < rows) fetch_output<X, kStrips>(p, row + r + kAhead, strip);
    for (int64_t s = 0; s < strips; ++s) finish<X>(p, row + r, strip + s, load(sums + s * 16));
  }
}

using FinishRows = decltype(&finish_rows<float>);

}  // namespace native::strips
