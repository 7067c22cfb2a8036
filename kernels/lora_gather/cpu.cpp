// Low-rank updates of rows with different adapters: shrink every row to the rank, then expand.
// An element's sum is one thread's, in one order, whatever the tile: other rows do not change it.
#include <algorithm>
#include <numeric>
#include <vector>

#include "pieces.h"
#include "products.h"

namespace {

using namespace native;

// Of a tile, whose sums stay in registers: with AVX-512 there are twice as many.
constexpr int kRows = 4, kRanks = 4, kColumns = kLanes == 16 ? 4 : 2;

template <class T>
struct Problem {
  T* y;
  int64_t y_stride;
  const T* x;
  int64_t x_stride;
  const T* a;
  const T* b;
  const int32_t* ids;
  const float* scales;
  int64_t rows, outputs, size, rank;
};

// Up to kRows rows with the same adapter: each number of it is read and converted once for them.
struct Group {
  const int64_t* rows;
  int64_t count, adapter;
};

template <class T>
std::vector<Group> groups_of(const Problem<T>& p, std::vector<int64_t>& order) {
  for (int64_t row = 0; row < p.rows; ++row)
    if (p.ids[row] >= 0) order.push_back(row);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t left, int64_t right) { return p.ids[left] < p.ids[right]; });
  std::vector<Group> groups;
  for (const int64_t& row : order) {
    int64_t adapter = p.ids[row];
    if (groups.empty() || groups.back().adapter != adapter || groups.back().count == kRows)
      groups.push_back({&row, 0, adapter});
    ++groups.back().count;
  }
  return groups;
}

// inner[row] = a · x of `rows` rows, for `ranks` ranks from `first` on.
template <int rows, int ranks, class T>
void shrink(const Problem<T>& p, const Group& group, int64_t first, float* inner) {
  const T* a = p.a + (group.adapter * p.rank + first) * p.size;
  const T* x[rows];
  each<rows>([&](auto m) INLINE_BODY { x[m] = p.x + group.rows[m] * p.x_stride; });
  Lanes sums[rows][ranks] = {};
  auto add = [&](int64_t i, int64_t count) INLINE_BODY {
    Lanes factors[ranks];
    each<ranks>([&](auto n) INLINE_BODY { factors[n] = load_some(a + n * p.size + i, count); });
    each<rows>([&](auto m) INLINE_BODY {
      Lanes numbers = load_some(x[m] + i, count);
      each<ranks>([&](auto n) INLINE_BODY {
        sums[m][n] = multiply_add(numbers, factors[n], sums[m][n]);
      });
    });
  };
  int64_t whole = p.size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) add(i, kLanes);
  if (whole < p.size) add(whole, p.size - whole);
  each<rows>([&](auto m) INLINE_BODY {
    each<ranks>([&](auto n) INLINE_BODY {
      inner[group.rows[m] * p.rank + first + n] = sum(sums[m][n]);
    });
  });
}

// The first `count` numbers of `values`, rounded.
template <class T>
ALWAYS_INLINE void store_some(T* to, Lanes values, int64_t count) {
  T rounded[kLanes];
  for (int i = 0; i < kLanes; ++i) rounded[i] = from_float<T>(values[i]);
  if (count == kLanes)
    std::memcpy(to, rounded, sizeof rounded);
  else
    std::memcpy(to, rounded, count * sizeof(T));
}

// y[row] += scale · inner[row] · b of `rows` rows, for the outputs of `columns` registers from
// `first` on, of which the last one may be cut.
template <int rows, int columns, class T>
void expand(const Problem<T>& p, const Group& group, int64_t first, const float* inner) {
  const T* b = p.b + group.adapter * p.rank * p.outputs + first;
  int64_t last = std::min<int64_t>(kLanes, p.outputs - first - (columns - 1) * kLanes);
  const float* x[rows];
  each<rows>([&](auto m) INLINE_BODY { x[m] = inner + group.rows[m] * p.rank; });
  Lanes updates[rows][columns] = {};
  for (int64_t r = 0; r < p.rank; ++r) {
    Lanes factors[columns];
    each<columns>([&](auto c) INLINE_BODY {
      factors[c] = load_some(b + r * p.outputs + c * kLanes, c == columns - 1 ? last : kLanes);
    });
    each<rows>([&](auto m) INLINE_BODY {
      Lanes number = fill(x[m][r]);
      each<columns>([&](auto c) INLINE_BODY {
        updates[m][c] = multiply_add(number, factors[c], updates[m][c]);
      });
    });
  }
  Lanes scale = fill(p.scales[group.adapter]);
  each<rows>([&](auto m) INLINE_BODY {
    each<columns>([&](auto c) INLINE_BODY {
      T* y = p.y + group.rows[m] * p.y_stride + first + c * kLanes;
      int64_t count = c == columns - 1 ? last : kLanes;
      store_some(y, multiply_add(scale, updates[m][c], load_some(y, count)), count);
    });
  });
}

template <class T>
void gather(const Problem<T>& p) {
  std::vector<int64_t> order;
  std::vector<Group> groups = groups_of(p, order);
  std::vector<float> inner(p.rows * p.rank);
  int64_t work = order.size() * p.rank;
  int64_t parts = (p.rank + kRanks - 1) / kRanks;
  for_ranges(groups.size() * parts, work * p.size, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Group& group = groups[i / parts];
      int64_t first = i % parts * kRanks;
      with_constant<kRows>(group.count, [&](auto rows) {
        with_constant<kRanks>(std::min<int64_t>(kRanks, p.rank - first), [&](auto ranks) {
          shrink<rows, ranks>(p, group, first, inner.data());
        });
      });
    }
  });
  constexpr int64_t kWidth = kColumns * kLanes;
  for_ranges((p.outputs + kWidth - 1) / kWidth, work * p.outputs, [&](int64_t begin, int64_t end) {
    for (const Group& group : groups)
      for (int64_t first = begin * kWidth; first < std::min(end * kWidth, p.outputs); first += kWidth)
        with_constant<kRows>(group.count, [&](auto rows) {
          int64_t columns = (std::min(kWidth, p.outputs - first) + kLanes - 1) / kLanes;
          with_constant<kColumns>(columns, [&](auto columns) {
            expand<rows, columns>(p, group, first, inner.data());
          });
        });
  });
}

}  // namespace

extern "C" void tandem_lora_gather(int64_t dtype, void* y, int64_t y_stride, const void* x,
                                   int64_t x_stride, const void* a, const void* b,
                                   const int32_t* ids, const float* scales, int64_t rows,
                                   int64_t outputs, int64_t size, int64_t rank) {
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    gather<T>({(T*)y, y_stride, (const T*)x, x_stride, (const T*)a, (const T*)b, ids, scales, rows,
               outputs, size, rank});
  });
}
