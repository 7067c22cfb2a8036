// Low-rank updates of rows with different adapters. An element's sum is one thread's, in one order,
// whatever the tile: other rows do not change it.
//
// A row with an adapter of its own waits for memory: a step reads every adapter once and from front to
// back, and asks for what comes four ranks later, be it the adapter's B or the next adapter, since the
// processor sees no end of an array coming. Rows that share an adapter are multiplied together.
#include <algorithm>
#include <vector>

#include "halves.h"
#include "pieces.h"
#include "products.h"
#include "strip_problem.h"

namespace {

using namespace native;

// Of a tile, whose sums stay in registers: with AVX-512 there are twice as many.
constexpr int kRows = 4, kRanks = kLanes == 16 ? 4 : 2;
constexpr int64_t kAhead = 4;       // ranks between what is read and what is fetched
constexpr int64_t kSums = 1 << 12;  // that wait in the first-level cache, of all rows of a tile

// Kinds of memory: a thread uses both at once.
struct Inner {
  float x;
};
struct Sum {
  float x;
};

// Up to kRows rows with the same adapter: each number of it is read and converted once for them.
struct Group {
  const int64_t* rows;
  int64_t count, adapter;
};

// Of the rows that have adapters. Layers of a step ask for the same again.
class Groups {
 public:
  static const std::vector<Group>& of(const int32_t* ids, int64_t rows) {
    thread_local Groups known;
    if (int64_t(known.ids_.size()) != rows || !std::equal(ids, ids + rows, known.ids_.begin()))
      known.find(ids, rows);
    return known.groups_;
  }

 private:
  void find(const int32_t* ids, int64_t rows) {
    ids_.assign(ids, ids + rows);
    order_.clear();
    groups_.clear();
    for (int64_t row = 0; row < rows; ++row)
      if (ids[row] >= 0) order_.push_back(row);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t left, int64_t right) { return ids[left] < ids[right]; });
    for (const int64_t& row : order_) {
      int64_t adapter = ids[row];
      if (groups_.empty() || groups_.back().adapter != adapter || groups_.back().count == kRows)
        groups_.push_back({&row, 0, adapter});
      ++groups_.back().count;
    }
  }

  std::vector<int32_t> ids_;
  std::vector<int64_t> order_;
  std::vector<Group> groups_;
};

// What an adapter has for each of its ranks.
template <class T>
struct Ranks {
  const T* data;
  int64_t stride, count;

  const T* at(int64_t rank) const { return data + rank * stride; }
  // What is read kAhead ranks after one of these, if `then` comes after them.
  const T* ahead(int64_t rank, const Ranks& then) const {
    int64_t later = rank + kAhead;
    return later < count ? at(later) : then.at(std::min(later - count, then.count - 1));
  }
};

// All adapters' parts for neighbouring outputs, as the caller's table has them.
template <class T>
struct Shard {
  int64_t first, outputs, rank;
  const T* a;
  const T* b;
  const float* scales;

  Ranks<T> a_of(const Group& group, int64_t size) const {
    return {a + group.adapter * rank * size, size, rank};
  }
  Ranks<T> b_of(const Group& group, int64_t output) const {
    return {b + group.adapter * rank * outputs + output, outputs, rank};
  }
};

template <class T>
struct Update {
  T* y;
  int64_t y_stride;
  const T* x;
  int64_t x_stride;
  const Shard<T>* shards;
  int64_t num_shards;
  const int32_t* ids;
  int64_t rows, size;

  void run() const {
    const std::vector<Group>& groups = Groups::of(ids, rows);
    int64_t pieces = groups.size() * num_shards, elements = 0;
    for (const Group& group : groups)
      for (int64_t s = 0; s < num_shards; ++s)
        elements += group.count * shards[s].rank * (size + shards[s].outputs);
    int64_t threads = worth_threads(elements) ? num_threads() : 1;
    if (pieces >= threads) return run_pieces(groups, pieces, elements, threads);
    for (int64_t s = 0; s < num_shards; ++s) run_together(groups, shards[s], elements);
  }

 private:
  // A thread takes a piece before it has finished the one before, to fetch what comes next.
  void run_pieces(const std::vector<Group>& groups, int64_t pieces, int64_t elements,
                  int64_t threads) const {
    Ranges ranges(pieces, elements, 1, threads);
    share_pieces(ranges.count(), threads, [&](Pieces& taken) {
      int64_t next;
      for (bool more = taken.take(next); more;) {
        int64_t first = ranges.first(next), last = ranges.first(next + 1);
        more = taken.take(next);
        for (int64_t i = first; i < last; ++i) {
          int64_t then = i + 1 < last ? i + 1 : more ? ranges.first(next) : i;
          const Group& group = groups[i / num_shards];
          const Shard<T>& shard = shards[i % num_shards];
          auto* inner = (float*)strips::scratch<Inner>(kRows * shard.rank);
          shrink(shard, group, 0, shard.rank, inner, shard.b_of(group, 0));
          expand(shard, group, 0, shard.outputs, inner,
                 shards[then % num_shards].a_of(groups[then / num_shards], size));
        }
      }
    });
  }

  // Fewer groups than threads: these share the ranks, then the outputs.
  void run_together(const std::vector<Group>& groups, const Shard<T>& shard,
                    int64_t elements) const {
    auto* inner = (float*)strips::scratch<Inner>(groups.size() * kRows * shard.rank);
    int64_t parts = (shard.rank + kRanks - 1) / kRanks;
    for_ranges(groups.size() * parts, elements, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Group& group = groups[i / parts];
        int64_t first = i % parts * kRanks, last = std::min(shard.rank, first + kRanks);
        float* to = inner + i / parts * kRows * shard.rank;
        shrink(shard, group, first, last, to, shard.b_of(group, 0));
      }
    });
    int64_t width = 2 * kLanes, units = (shard.outputs + width - 1) / width;
    for_ranges(units, elements, [&](int64_t begin, int64_t end) {
      for (size_t g = 0; g < groups.size(); ++g)
        expand(shard, groups[g], begin * width, std::min(shard.outputs, end * width),
               inner + g * kRows * shard.rank, shard.a_of(groups[g], size));
    });
  }

  // inner[m] = a · x of the group's rows for ranks first .. last - 1, after which `then` is read.
  void shrink(const Shard<T>& shard, const Group& group, int64_t first, int64_t last, float* inner,
              const Ranks<T>& then) const {
    Ranks<T> ranks = shard.a_of(group, size);
    tiles(group, first, last, [&](auto rows, auto count, int64_t from) {
      shrink_tile<rows, count>(group, ranks, from, inner, then);
    });
  }

  // y += scale · inner[m] · b for outputs first .. last - 1, after which `then` is read.
  void expand(const Shard<T>& shard, const Group& group, int64_t first, int64_t last,
              const float* inner, const Ranks<T>& then) const {
    constexpr int64_t kStep = 2 * kLanes;
    int64_t most = kSums / group.count / kStep * kStep;
    int64_t width = std::min(most, (last - first + kStep - 1) / kStep * kStep);
    auto* sums = (float*)strips::scratch<Sum>(kSums);
    for (int64_t at = first; at < last; at += width) {
      int64_t count = std::min(width, last - at);
      Ranks<T> ranks = shard.b_of(group, at);
      Ranks<T> later = at + width < last ? shard.b_of(group, at + width) : then;
      std::fill_n(sums, group.count * width, 0.0f);
      tiles(group, 0, shard.rank, [&](auto rows, auto together, int64_t from) {
        expand_tile<rows, together>(ranks, from, inner, count, sums, width, later);
      });
      for (int64_t m = 0; m < group.count; ++m)
        add(y + group.rows[m] * y_stride + shard.first + at, shard.scales[group.adapter],
            sums + m * width, count);
    }
  }

  // Calls `tile(rows, ranks, from)`, two constants and the first of the ranks. Few rows walk along
  // one rank at a time, as it lies in memory: reading it takes longer than multiplying it.
  template <class Tile>
  void tiles(const Group& group, int64_t first, int64_t last, Tile tile) const {
    with_constant<kRows>(group.count, [&](auto rows) {
      constexpr int kMost = rows <= 2 ? 1 : kRanks;
      for (int64_t from = first; from < last; from += kMost)
        with_constant<kMost>(std::min<int64_t>(kMost, last - from),
                             [&](auto ranks) { tile(rows, ranks, from); });
    });
  }

  template <int rows, int ranks>
  void shrink_tile(const Group& group, const Ranks<T>& all, int64_t from, float* inner,
                   const Ranks<T>& then) const {
    const T* numbers[rows];
    const T* factors[ranks];
    const T* ahead[ranks];
    each<rows>([&](auto m) INLINE_BODY { numbers[m] = x + group.rows[m] * x_stride; });
    each<ranks>([&](auto n) INLINE_BODY {
      factors[n] = all.at(from + n);
      ahead[n] = all.ahead(from + n, then);
    });
    Lanes sums[rows][ranks] = {};
    in_halves(size, [&](int64_t i, auto half) INLINE_BODY {
      if constexpr (half.is_first)
        each<ranks>([&](auto n) INLINE_BODY { fetch<2 * kLanes * sizeof(T)>(ahead[n] + i); });
      Lanes given[rows];
      each<rows>([&](auto m) INLINE_BODY { given[m] = half.load(numbers[m] + i); });
      each<ranks>([&](auto n) INLINE_BODY {
        Lanes factor = half.load(factors[n] + i);
        each<rows>([&](auto m) INLINE_BODY {
          sums[m][n] = multiply_add(given[m], factor, sums[m][n]);
        });
      });
    });
    each<rows>([&](auto m) INLINE_BODY {
      each<ranks>([&](auto n) INLINE_BODY {
        inner[m * all.count + from + n] = sum(sums[m][n]);
      });
    });
  }

  // Adds the products of some ranks to sums that are `width` apart from row to row.
  template <int rows, int ranks>
  void expand_tile(const Ranks<T>& all, int64_t from, const float* inner, int64_t count,
                   float* sums, int64_t width, const Ranks<T>& then) const {
    const T* factors[ranks];
    const T* ahead[ranks];
    Lanes given[rows][ranks];
    each<ranks>([&](auto n) INLINE_BODY {
      factors[n] = all.at(from + n);
      ahead[n] = all.ahead(from + n, then);
      each<rows>([&](auto m) INLINE_BODY {
        given[m][n] = fill(inner[m * all.count + from + n]);
      });
    });
    in_halves(count, [&](int64_t i, auto half) INLINE_BODY {
      if constexpr (half.is_first)
        each<ranks>([&](auto n) INLINE_BODY { fetch<2 * kLanes * sizeof(T)>(ahead[n] + i); });
      Lanes factor[ranks];
      each<ranks>([&](auto n) INLINE_BODY { factor[n] = half.load(factors[n] + i); });
      each<rows>([&](auto m) INLINE_BODY {
        float* to = sums + m * width + i + half.place;
        Lanes total = load_lanes(to);
        each<ranks>([&](auto n) INLINE_BODY {
          total = multiply_add(given[m][n], factor[n], total);
        });
        store(to, total);
      });
    });
  }

  // y += scale · sums, rounded once.
  static void add(T* y, float scale, const float* sums, int64_t count) {
    constexpr int64_t kStep = 2 * kLanes;
    int64_t i = 0;
    for (; i + kStep <= count; i += kStep) add_step(y + i, scale, sums + i);
    if (i == count) return;
    T cut[kStep] = {};
    std::memcpy(cut, y + i, (count - i) * sizeof(T));
    add_step(cut, scale, sums + i);
    std::memcpy(y + i, cut, (count - i) * sizeof(T));
  }
  static ALWAYS_INLINE void add_step(T* y, float scale, const float* sums) {
    Lanes first = multiply_add(fill(scale), load_lanes(sums), load_half<0>(y));
    Lanes second = multiply_add(fill(scale), load_lanes(sums + kLanes), load_half<1>(y));
    store_halves(y, first, second);
  }
};

}  // namespace

extern "C" void tandem_lora_gather(int64_t dtype, void* y, int64_t y_stride, const void* x,
                                   int64_t x_stride, const void* shards, int64_t num_shards,
                                   const int32_t* ids, int64_t rows, int64_t size) {
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    Update<T>{(T*)y, y_stride, (const T*)x, x_stride, (const Shard<T>*)shards, num_shards, ids, rows,
              size}
        .run();
  });
}
