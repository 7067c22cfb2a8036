// What both ways of storing adapters share: plain.h and packed.h multiply, cpu.cpp shares the work.
#pragma once
#include <algorithm>

#include "products.h"
#include "vec.h"

namespace native::lora {

// Of a tile, whose sums stay in registers: with AVX-512 there are twice as many.
constexpr int kRows = 4, kRanks = kLanes == 16 ? 4 : 2;
constexpr int64_t kAhead = 4;  // ranks between what is read and what is fetched

// Up to kRows rows with the same adapter: each number of it is read and converted once for them.
struct Group {
  const int64_t* rows;
  int64_t count, adapter;
};

// What an adapter has for each of its ranks.
struct Ranks {
  const char* data;  // the first number that is read
  int64_t stride, count;
  int64_t steps = 0;  // bytes from there to its group's step, if they are packed

  const char* at(int64_t rank) const { return data + rank * stride; }
  // What is read kAhead ranks after one of these, if `then` comes after them.
  const char* ahead(int64_t rank, const Ranks& then) const {
    int64_t later = rank + kAhead;
    return later < count ? at(later) : then.at(std::min(later - count, then.count - 1));
  }
};

// Where the numbers of ranks from `from` on are, and what is fetched meanwhile.
template <int ranks, class Number>
ALWAYS_INLINE void begin(const Ranks& all, int64_t from, const Ranks& then, const Number** factors,
                         const Number** ahead) {
  each<ranks>([&](auto n) INLINE_BODY {
    factors[n] = (const Number*)all.at(from + n);
    ahead[n] = (const Number*)all.ahead(from + n, then);
  });
}

// inner[m] of these ranks for each row.
template <int rows, int ranks>
ALWAYS_INLINE void put_sums(const Lanes (&sums)[rows][ranks], const Ranks& all, int64_t from,
                            float* inner) {
  each<rows>([&](auto m) INLINE_BODY {
    each<ranks>([&](auto n) INLINE_BODY {
      inner[m * all.count + from + n] = sum(sums[m][n]);
    });
  });
}

}  // namespace native::lora
