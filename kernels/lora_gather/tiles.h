// The common part of both ways to store adapters: plain.h and packed.h multiply, cpu.cpp divides
// the work.
#pragma once
#include <algorithm>

#include "products.h"
#include "vec.h"

namespace native::lora {

constexpr int kRows = 4;  // of a tile, whose sums stay in registers

// Up to kRows rows with the same adapter: each of its numbers is read and converted once for them.
struct Group {
  const int64_t* rows;
  int64_t count, adapter;
};

// An adapter's data for each of its ranks, or for each chunk of them if it is packed.
struct Ranks {
  const char* data;  // the first number that is read
  int64_t stride, count;
  int64_t steps = 0;  // bytes from there to its steps, if they are packed

  const char* at(int64_t rank) const { return data + rank * stride; }
  Ranks at_byte(int64_t byte) const { return {data + byte, stride, count, steps}; }
  // The data that is read `distance` ranks after one of these, if `then` follows them.
  const char* ahead(int64_t rank, int64_t distance, const Ranks& then) const {
    int64_t later = rank + distance;
    return later < count ? at(later) : then.at(std::min(later - count, then.count - 1));
  }
};

}  // namespace native::lora
