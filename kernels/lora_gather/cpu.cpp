// Low-rank updates of rows with different adapters. One thread computes an element's sum, in one
// order for every tile, so other rows do not change it.
//
// A row with an adapter of its own waits for memory: a step reads every adapter once, from front to
// back, and prefetches the data of four ranks later, which may be the adapter's B or the next
// adapter, since the processor cannot predict the end of an array. Rows that share an adapter are
// multiplied together.
#include <algorithm>
#include <vector>

#include "packed.h"
#include "pieces.h"
#include "plain.h"
#include "strip_problem.h"

namespace {

using namespace native;
using namespace native::lora;

// Kinds of memory; a thread uses all of them at the same time.
struct Inner {
  float x;
};
template <class X>
struct Copy {
  X x;
};

// Groups of the rows that have adapters. Layers of a step use the same groups again.
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

// All adapters' parts for neighbouring outputs, a row of the caller's table.
struct Shard {
  int64_t first, outputs, rank;  // rank: in units of Store::kRanks
  const void* a;
  const void* b;
  const float* scales;
  int64_t a_stride, b_stride;  // bytes from adapter to adapter
};

template <class T, class Store>
struct Update {
  using Given = typename Store::Given;

  T* y;
  int64_t y_stride;
  const T* x;
  int64_t x_stride;
  const Shard* shards;
  int64_t num_shards;
  const int32_t* ids;
  int64_t rows, size;

  void run() const {
    const std::vector<Group>& groups = Groups::of(ids, rows);
    int64_t pieces = groups.size() * num_shards, elements = 0;
    for (const Group& group : groups)
      for (int64_t s = 0; s < num_shards; ++s)
        elements += group.count * inner_size(shards[s]) * (size + shards[s].outputs);
    int64_t threads = worth_threads(elements) ? num_threads() : 1;
    if (pieces >= threads) return run_pieces(groups, pieces, elements, threads);
    for (int64_t s = 0; s < num_shards; ++s) run_together(groups, shards[s], elements);
  }

 private:
  // The rows of a thread's present group.
  struct Numbers {
    const Group* group = nullptr;
    const Given* rows[kRows];
  };

  static int64_t inner_size(const Shard& shard) { return shard.rank * Store::kRanks; }
  Ranks a_of(const Shard& shard, const Group& group) const {
    const char* a = (const char*)shard.a + group.adapter * shard.a_stride;
    return Store::ranks(a, shard.rank, size, 0);
  }
  Ranks b_of(const Shard& shard, const Group& group, int64_t output) const {
    const char* b = (const char*)shard.b + group.adapter * shard.b_stride;
    return Store::ranks(b, shard.rank, shard.outputs, output);
  }

  void look_at(const Group& group, Numbers& numbers) const {
    if (numbers.group == &group) return;
    numbers.group = &group;
    int64_t length = Store::given_size(size);
    auto* copy = (Given*)strips::scratch<Copy<Given>>(kRows * length);
    for (int64_t m = 0; m < group.count; ++m)
      numbers.rows[m] = Store::given(x + group.rows[m] * x_stride, size, copy + m * length);
  }

  // A thread takes a piece before it has finished the previous one, to prefetch it.
  void run_pieces(const std::vector<Group>& groups, int64_t pieces, int64_t elements,
                  int64_t threads) const {
    Ranges ranges(pieces, elements, 1, threads);
    share_pieces(ranges.count(), threads, [&](Pieces& taken) {
      Numbers numbers;
      int64_t next;
      for (bool more = taken.take(next); more;) {
        int64_t first = ranges.first(next), last = ranges.first(next + 1);
        more = taken.take(next);
        for (int64_t i = first; i < last; ++i) {
          int64_t then = i + 1 < last ? i + 1 : more ? ranges.first(next) : i;
          const Group& group = groups[i / num_shards];
          const Shard& shard = shards[i % num_shards];
          auto* inner = (float*)strips::scratch<Inner>(kRows * inner_size(shard));
          look_at(group, numbers);
          shrink(shard, numbers, 0, shard.rank, inner, b_of(shard, group, 0));
          expand(shard, group, 0, shard.outputs, inner,
                 a_of(shards[then % num_shards], groups[then / num_shards]));
        }
      }
    });
  }

  // With fewer groups than threads, threads share the ranks, then the outputs.
  void run_together(const std::vector<Group>& groups, const Shard& shard, int64_t elements) const {
    constexpr int64_t kTogether = Store::kTogether;
    int64_t length = kRows * inner_size(shard);
    auto* inner = (float*)strips::scratch<Inner>(groups.size() * length);
    int64_t parts = (shard.rank + kTogether - 1) / kTogether;
    for_ranges(groups.size() * parts, elements, [&](int64_t begin, int64_t end) {
      Numbers numbers;
      for (int64_t i = begin; i < end; ++i) {
        const Group& group = groups[i / parts];
        int64_t first = i % parts * kTogether, last = std::min(shard.rank, first + kTogether);
        look_at(group, numbers);
        shrink(shard, numbers, first, last, inner + i / parts * length, b_of(shard, group, 0));
      }
    });
    int64_t units = (shard.outputs + Store::kUnit - 1) / Store::kUnit;
    for_ranges(units, elements, [&](int64_t begin, int64_t end) {
      for (size_t g = 0; g < groups.size(); ++g)
        expand(shard, groups[g], begin * Store::kUnit, std::min(shard.outputs, end * Store::kUnit),
               inner + g * length, a_of(shard, groups[g]));
    });
  }

  // inner[m] = a · x of the group's rows for ranks first .. last - 1; `then` is read afterwards.
  void shrink(const Shard& shard, const Numbers& numbers, int64_t first, int64_t last, float* inner,
              const Ranks& then) const {
    Ranks ranks = a_of(shard, *numbers.group);
    with_constant<kRows>(numbers.group->count, [&](auto rows) {
      Store::template shrink<rows>(numbers.rows, size, ranks, first, last, inner, then);
    });
  }

  // y += scale · inner[m] · b for outputs first .. last - 1; `then` is read afterwards.
  void expand(const Shard& shard, const Group& group, int64_t first, int64_t last,
              const float* inner, const Ranks& then) const {
    T* outputs[kRows];
    for (int64_t m = 0; m < group.count; ++m)
      outputs[m] = y + group.rows[m] * y_stride + shard.first + first;
    with_constant<kRows>(group.count, [&](auto rows) {
      Store::template expand<rows>(b_of(shard, group, first), inner, last - first,
                                   shard.scales[group.adapter], outputs, then);
    });
  }
};

}  // namespace

// `packed`: whether adapters have 8 bits; otherwise they have the rows' type.
extern "C" void tandem_lora_gather(int64_t dtype, int64_t packed, void* y, int64_t y_stride,
                                   const void* x, int64_t x_stride, const void* shards,
                                   int64_t num_shards, const int32_t* ids, int64_t rows,
                                   int64_t size) {
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto update = [&](auto* store) {
      using Store = std::remove_pointer_t<decltype(store)>;
      Update<T, Store>{(T*)y, y_stride, (const T*)x, x_stride, (const Shard*)shards, num_shards,
                       ids, rows, size}
          .run();
    };
    if (packed) return update((Packed<T>*)nullptr);
    update((Plain<T>*)nullptr);
  });
}
