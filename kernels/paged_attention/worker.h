// A thread's work on a task.
#pragma once
#include <algorithm>
#include <cstring>
#include <utility>

#include "products.h"
#include "scratch.h"
#include "state.h"
#include "step.h"
#include "task.h"
#include "tile.h"

namespace {

// The arithmetic of one thread. T is the storage type of queries and of caches that are not packed.
template <class T>
class Worker {
  using Products = typename native::ProductsOf<T>::Type;
  using Element = typename Products::Element;

 public:
  static int64_t width(const Arguments& a) { return Tile<T>::width(a); }

  Worker(const Arguments& a, int64_t rows)
      : a(a),
        width_(width(a)),
        q_width_(Tile<T>::q_width(a)),
        scratch_(2 * State::size(rows, width_) + rows * q_width_ + Tile<T>::scratch_size(a) +
                 Step<T>::kScratchSize + 256),
        tile_(a, scratch_),
        step_(a, tile_, scratch_),
        sum_memory_(scratch_.take<float>(State::size(rows, width_))),
        segment_memory_(scratch_.take<float>(State::size(rows, width_))),
        queries_(scratch_.take<Element>(rows * q_width_)) {}
  Worker(const Worker&) = delete;

  // Computes rows' results, or with `saved` those of the task's only segment.
  void run(const Task& task, float* saved, const Task& next) {
    begin(task);
    for (int64_t r = 0; r < task.num_rows; ++r)
      pack_query(query(task, r), queries_ + r * q_width_);
    for (int64_t base = task.begin / kSegment * kSegment; base < task.end; base += kSegment) {
      segment_.clear();
      int64_t end = std::min(task.end, base + kSegment);
      for (int64_t tile = std::max(base, task.begin / kTile * kTile); tile < end; tile += kTile)
        add_tile(task, tile, next);
      if (!saved) sum_.merge(segment_);
    }
    if (saved)
      std::memcpy(saved, segment_.sums, State::size(task.num_rows, width_) * sizeof(float));
    else
      finish(task);
  }

  // Combines the results that `run` saved for a task's `count` segments, one after the other.
  void combine(const Task& task, float* saved, int64_t count) {
    begin(task);
    for (int64_t i = 0; i < count; ++i) {
      sum_.merge(State(saved, task.num_rows, width_));
      saved += State::size(task.num_rows, width_);
    }
    finish(task);
  }

 private:
  void begin(const Task& task) {
    sum_ = State(sum_memory_, task.num_rows, width_);
    segment_ = State(segment_memory_, task.num_rows, width_);
    sum_.clear();
  }

  int64_t position(const Task& task, int64_t row) const {
    int64_t rows = a.first_rows[task.sequence + 1] - a.first_rows[task.sequence];
    return a.context_lens[task.sequence] - rows + (task.first_row + row) / a.group;
  }
  int64_t head_of(const Task& task, int64_t row) const {
    return task.head * a.group + (task.first_row + row) % a.group;
  }
  int64_t token_of(const Task& task, int64_t row) const {
    return a.first_rows[task.sequence] + (task.first_row + row) / a.group;
  }
  const T* query(const Task& task, int64_t row) const {
    return (const T*)a.q + token_of(task, row) * a.q_token_stride +
           head_of(task, row) * a.q_head_stride;
  }

  // The keys of a tile that a row sees, counted from its start: begin .. end - 1.
  std::pair<int64_t, int64_t> visible(const Task& task, int64_t row, int64_t base) const {
    int64_t end = a.key_end(task.sequence, (task.first_row + row) / a.group);
    int64_t begin = a.key_begin(position(task, row));
    return {std::clamp<int64_t>(begin - base, 0, kTile), std::clamp<int64_t>(end - base, 0, kTile)};
  }

  void pack_query(const T* from, Element* to) const {
    for (int64_t d = 0; d < a.dim; ++d)
      to[d] = native::from_float<Element>(native::to_float(from[d]));
    for (int64_t d = a.dim; d < q_width_; ++d) to[d] = Element{};
  }

  void add_tile(const Task& task, int64_t base, const Task& next) {
    int64_t begin = std::max<int64_t>(0, task.begin - base) / kLanes * kLanes;
    int64_t end = round_up(std::min(kTile, task.end - base), kLanes);
    if (base + kTile < task.end) tile_.will_read(task, base + kTile, end - begin);
    else tile_.will_read(next, next.begin / kTile * kTile, end - begin);
    tile_.find(task, base, begin, end);
    tile_.pack_keys(begin, end);
    if (task.num_rows <= kRows) return add_rows<true>(task, 0, task.num_rows, base);
    tile_.pack_values(begin, end);
    int64_t steps = divide_up(task.num_rows, kRows), rows = divide_up(task.num_rows, steps);
    for (int64_t row = 0; row < task.num_rows; row += rows)
      add_rows<false>(task, row, std::min(rows, task.num_rows - row), base);
  }

  // Computes at most kRows rows. `direct` reads the cache instead of packed keys and values.
  template <bool direct>
  void add_rows(const Task& task, int64_t row, int64_t count, int64_t base) {
    int64_t begin = visible(task, row, base).first / kLanes * kLanes;
    int64_t end = round_up(visible(task, row + count - 1, base).second, kLanes);
    if (begin >= end) return;
    with_constant<kRows>(count, [&](auto rows) {
      const Element* queries = queries_ + row * q_width_;
      float* sums = segment_.sums + row * width_;
      step_.template score_some<rows>(queries, begin, end);
      for (int64_t r = 0; r < count; ++r)
        step_.weigh(visible(task, row + r, base), segment_, row + r, r);
      if constexpr (direct) step_.template mix_direct<rows>(sums, begin, end);
      else step_.template mix_packed<rows>(sums, begin, end);
    });
  }

  void finish(const Task& task) {
    for (int64_t r = 0; r < task.num_rows; ++r) {
      Lanes* sums = (Lanes*)(sum_.sums + r * width_);
      Products::in_order(sums, width_ / kLanes);
      float total = native::sum(load_lanes(sum_.totals + r * kLanes)), shrink = 1.0f;
      if (a.sinks) {
        float sink = a.sinks[head_of(task, r)] * kLog2E, peak = std::max(sum_.peaks[r], sink);
        shrink = native::exp2_nonpositive(fill(sum_.peaks[r] - peak))[0];
        total = total * shrink + native::exp2_nonpositive(fill(sink - peak))[0];
      }
      T* out = (T*)a.out + (token_of(task, r) * a.kv_heads * a.group + head_of(task, r)) * a.dim;
      for (int64_t d = 0; d < a.dim; ++d)
        out[d] = native::from_float<T>(sum_.sums[r * width_ + d] * shrink / total);
    }
  }

  const Arguments& a;
  int64_t width_, q_width_;
  Scratch scratch_;
  Tile<T> tile_;
  Step<T> step_;
  float *sum_memory_, *segment_memory_;
  Element* queries_;
  State sum_, segment_;
};

}  // namespace
