// Low-rank updates of rows of many positions, each row with its own adapters. A thread takes a few
// positions of a row through all of its adapters, so that intermediate results stay in the
// first-level cache. One thread computes an element's sums, in one order for every tile.
#include <algorithm>
#include <vector>

#include "pieces.h"
#include "products.h"
#include "strip_problem.h"

namespace {

using namespace native;

constexpr int kPositions = 12;  // positions of a tile: as many sums as there are registers for, with AVX2

// A row of the caller's table.
struct Updates {
  int64_t rank, count;
  const float* a;  // [inputs, rank]
  const float* b;  // [rank, outputs]
  const int64_t* rows;
  const float* scales;
};

// One row's share of an update.
struct Own {
  int64_t row;
  const Updates* updates;
  float scale;
};

// Kinds of memory; a thread uses both at the same time.
struct Inner {
  float x;
};

// Numbers [depth, columns] that lie in memory one after the other.
struct Matrix {
  const float* data;
  int64_t depth, columns;

  // Row k from a column on. If less than a register of numbers is left in the row, numbers of the
  // next row follow, which are ignored.
  ALWAYS_INLINE Lanes at(int64_t k, int64_t column) const {
    return load_lanes(data + k * columns + column);
  }
  Lanes at_end(int64_t k, int64_t column) const {
    return load_some(data + k * columns + column, (depth - k) * columns - column);
  }
  // The number of rows for which `at` stays inside the matrix.
  int64_t num_whole(int64_t column) const {
    int64_t last = depth * columns - column - kLanes;
    return last < 0 ? 0 : std::min(depth, last / columns + 1);
  }
};

// Computes the sums of x[p, k] * matrix[k, column ..] over k for `positions` that are `stride`
// apart.
template <int positions>
struct Tile {
  Lanes sums[positions] = {};

  ALWAYS_INLINE Tile(const float* x, int64_t stride, const Matrix& matrix, int64_t column) {
    int64_t k = 0;
    for (int64_t whole = matrix.num_whole(column); k < whole; ++k)
      add(x + k, stride, matrix.at(k, column));
    for (; k < matrix.depth; ++k) add(x + k, stride, matrix.at_end(k, column));
  }

 private:
  ALWAYS_INLINE void add(const float* x, int64_t stride, Lanes numbers) {
    each<positions>([&](auto p) INLINE_BODY {
      sums[p] = multiply_add(numbers, fill(x[p * stride]), sums[p]);
    });
  }
};

struct Problem {
  float* y;
  const float* x;
  const Updates* updates;
  int64_t num_updates, rows, positions, inputs, outputs;

  void run() const {
    std::vector<Own> own;
    int64_t elements = 0;
    for (int64_t u = 0; u < num_updates; ++u)
      for (int64_t i = 0; i < updates[u].count; ++i) {
        own.push_back({updates[u].rows[i], updates + u, updates[u].scales[i]});
        elements += positions * updates[u].rank * (inputs + outputs);
      }
    std::stable_sort(own.begin(), own.end(),
                     [](const Own& left, const Own& right) { return left.row < right.row; });
    std::vector<int64_t> firsts;  // of each row that has some
    for (int64_t i = 0; i < int64_t(own.size()); ++i)
      if (i == 0 || own[i].row != own[i - 1].row) firsts.push_back(i);
    int64_t num_rows = firsts.size(), tiles = (positions + kPositions - 1) / kPositions;
    firsts.push_back(own.size());
    for_ranges(num_rows * tiles, elements, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        int64_t row = unit / tiles, tile = unit % tiles;
        // Tiles have about equal height, because a low one reads as many weights as a full one.
        int64_t first = tile * positions / tiles, last = (tile + 1) * positions / tiles;
        with_constant<kPositions>(last - first, [&](auto count) {
          for (int64_t i = firsts[row]; i < firsts[row + 1]; ++i) add<count>(own[i], first);
        });
      }
    });
  }

 private:
  template <int count>
  void add(const Own& own, int64_t position) const {
    const Updates& with = *own.updates;
    int64_t place = own.row * positions + position;
    Matrix a{with.a, inputs, with.rank}, b{with.b, with.rank, outputs};
    int64_t width = (with.rank + kLanes - 1) / kLanes * kLanes;
    auto* inner = (float*)strips::scratch<Inner>(kPositions * width);
    for (int64_t column = 0; column < with.rank; column += kLanes) {
      Tile<count> tile(x + place * inputs, inputs, a, column);
      each<count>([&](auto p) INLINE_BODY { store(inner + p * width + column, tile.sums[p]); });
    }
    for (int64_t column = 0; column < outputs; column += kLanes) {
      Tile<count> tile(inner, width, b, column);
      float* to = y + place * outputs + column;
      int64_t left = std::min<int64_t>(kLanes, outputs - column);
      each<count>([&](auto p) INLINE_BODY {
        float* at = to + p * outputs;
        Lanes sum = multiply_add(fill(own.scale), tile.sums[p], load_some(at, left));
        std::memcpy(at, &sum, left * sizeof(float));
      });
    }
  }
};

}  // namespace

extern "C" void tandem_lora_rows(float* y, const float* x, const void* updates, int64_t num_updates,
                                 int64_t rows, int64_t positions, int64_t inputs, int64_t outputs) {
  Problem{y, x, (const Updates*)updates, num_updates, rows, positions, inputs, outputs}.run();
}
