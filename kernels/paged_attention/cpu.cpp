// Attention over the paged cache, where the blocks lie: decodes, prompt chunks and mixtures.
//
// A task is some rows of one sequence and one key head; a row is a query position and one of the
// query heads that share the key head. It walks the keys in tiles of kTile, packs a tile once for
// all its rows, and keeps a running maximum and sum (Milakov and Gimelshein 2018,
// arXiv:1805.02867; Dao 2023, arXiv:2307.08691). Every kSegment keys the running result is merged
// into what came before, so that few long sequences can occupy many threads.
//
// Tiles and segments begin at positions divisible by their length, each score and each sum adds up
// in one order, and keys that a row must not see change no bit of it. A row's result is therefore
// the same whatever else is computed: as a decode or in any chunk, alone or in a batch, on any
// number of threads.
#include <algorithm>
#include <cfloat>
#include <vector>

#include "products.h"

namespace {

using native::each;
using native::fill;
using native::kLanes;
using native::Lanes;
using native::load_lanes;
using native::store;
using native::with_constant;

constexpr int64_t kTile = 64;      // Keys whose weights are computed at once.
constexpr int64_t kSegment = 512;  // Keys between merges.
constexpr int64_t kMaxRows = 96;   // Of a task: they repay its packing and fit in an L2 cache.
constexpr float kNone = -FLT_MAX;  // A maximum over no keys.
constexpr float kLog2E = 1.442695041f;
#if defined(__AVX512F__)
constexpr int kRows = 6;  // A step of the inner loops: kRows times kColumns registers of sums.
#else
constexpr int kRows = 3;
#endif
constexpr int kColumns = 4;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// As kernels/paged_attention/cpu.py passes them.
enum CacheFormat : int { kSame = 0, kInt8 = 1, kFloat8 = 2 };

struct Arguments {
  const void* q;
  int64_t q_token_stride, q_head_stride;
  const void* cache;
  int64_t cache_format, block_stride;
  const float* scales;  // Only with packed caches.
  int64_t scales_stride;
  const int32_t* block_tables;
  int64_t table_stride;
  const int32_t *context_lens, *first_rows;
  void* out;
  int64_t sequences, kv_heads, group, block_size, dim, window;
  float scale, soft_cap;
};

// Some rows of a sequence and key head, over keys begin .. end - 1.
struct Task {
  int64_t sequence, head;
  int64_t first_row, num_rows;
  int64_t begin, end;
  int64_t saved_at;  // Where the result of one segment waits to be merged; -1 if it does not.
};

// Running results of rows: sums of values, sums of weights by lane, and the highest score.
struct State {
  float *sums = nullptr, *totals = nullptr, *peaks = nullptr;
  int64_t rows = 0, width = 0;

  static int64_t size(int64_t rows, int64_t width) { return rows * (width + kLanes + 1); }
  State() = default;
  State(float* memory, int64_t rows, int64_t width)
      : sums(memory),
        totals(sums + rows * width),
        peaks(totals + rows * kLanes),
        rows(rows),
        width(width) {}

  void clear() {
    std::fill_n(sums, rows * (width + kLanes), 0.0f);
    std::fill_n(peaks, rows, kNone);
  }

  // Adds what later keys gave.
  __attribute__((noinline)) void merge(const State& later) {
    for (int64_t r = 0; r < rows; ++r) {
      float peak = std::max(peaks[r], later.peaks[r]);
      Lanes shrink = native::exp2_nonpositive(fill(peaks[r] - peak));
      Lanes shrink_later = native::exp2_nonpositive(fill(later.peaks[r] - peak));
      peaks[r] = peak;
      auto add = [&](float* sum, const float* addend) {
        Lanes x = load_lanes(addend);
        // Products of bf16 pairs take such numbers for zero: whether a row's last keys were
        // skipped or had weight zero must not show.
        x = native::larger(x, -x) < FLT_MIN ? Lanes{} : x;
        store(sum, native::multiply_add(load_lanes(sum), shrink, x * shrink_later));
      };
      for (int64_t i = r * width; i < (r + 1) * width; i += kLanes) add(sums + i, later.sums + i);
      add(totals + r * kLanes, later.totals + r * kLanes);
    }
  }
};

// The arithmetic of one thread. T is the storage type of queries and of caches that are not packed.
template <class T>
class Worker {
  using Products = typename native::ProductsOf<T>::Type;
  using Element = typename Products::Element;
  static constexpr int kDepth = Products::kDepth;
  static constexpr int kWidth = kDepth * kLanes;  // Dims that are read at once.

 public:
  static int64_t width(const Arguments& a) { return round_up(a.dim, kWidth); }

  Worker(const Arguments& a, int64_t rows)
      : a(a),
        width_(width(a)),
        q_width_(round_up(a.dim, kDepth)),
        memory_(scratch(2 * State::size(rows, width_) + 2 * kTile + kRows * (kTile + 1) +
                        rows * q_width_ + kTile * (q_width_ + width_ + kRows + 2 * a.dim) + 256)),
        sum_memory_(take<float>(State::size(rows, width_))),
        segment_memory_(take<float>(State::size(rows, width_))),
        keys_(take<Element>(kTile * q_width_)),
        values_(take<Element>(kTile * width_)),
        weights_(take<Element>(kRows * kTile)),
        queries_(take<Element>(rows * q_width_)),
        scores_(take<float>(kRows * kTile)),
        shrinks_(take<float>(kRows)),
        key_scales_(take<float>(kTile)),
        value_scales_(take<float>(kTile)),
        unpacked_(take<T>(2 * kTile * a.dim)) {}

  // Rows' results, or with `saved` those of the task's only segment.
  void run(const Task& task, float* saved) {
    begin(task);
    for (int64_t r = 0; r < task.num_rows; ++r)
      pack_query(query(task, r), queries_ + r * q_width_);
    for (int64_t base = task.begin / kSegment * kSegment; base < task.end; base += kSegment) {
      segment_.clear();
      int64_t end = std::min(task.end, base + kSegment);
      for (int64_t tile = std::max(base, task.begin / kTile * kTile); tile < end; tile += kTile)
        add_tile(task, tile);
      if (!saved) sum_.merge(segment_);
    }
    if (saved)
      std::memcpy(saved, segment_.sums, State::size(task.num_rows, width_) * sizeof(float));
    else
      finish(task);
  }

  // Asks for the tile at `base`. Blocks lie far apart: the processor cannot guess the next one.
  void fetch(const Task& task, int64_t base) const {
    int64_t end = std::min(base + kTile, task.end), size = a.block_size * row_size();
    for (int64_t at = base / a.block_size * a.block_size; at < end; at += a.block_size) {
      Block block = block_at(task, at);
      for (int64_t i = 0; i < size; i += 64) {
        __builtin_prefetch(block.keys + i, 0, 2);
        __builtin_prefetch(block.values + i, 0, 2);
      }
    }
  }

  // What `run` saved of a task's `count` segments, one after the other.
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
    int64_t end = position(task, row) + 1;
    int64_t begin = a.window > 0 ? std::max<int64_t>(0, end - a.window) : 0;
    return {std::clamp<int64_t>(begin - base, 0, kTile), std::clamp<int64_t>(end - base, 0, kTile)};
  }

  void pack_query(const T* from, Element* to) const {
    for (int64_t d = 0; d < a.dim; ++d)
      to[d] = native::from_float<Element>(native::to_float(from[d]));
    for (int64_t d = a.dim; d < q_width_; ++d) to[d] = Element{};
  }

  void add_tile(const Task& task, int64_t base) {
    int64_t begin = std::max<int64_t>(0, task.begin - base) / kLanes * kLanes;
    int64_t end = round_up(std::min(kTile, task.end - base), kLanes);
    fetch(task, base + kTile);
    find_keys(task, base, begin, end);
    pack_keys(begin, end);
    if (task.num_rows <= kRows) return add_rows<true>(task, 0, task.num_rows, base);
    pack_values(begin, end);
    int64_t steps = divide_up(task.num_rows, kRows), rows = divide_up(task.num_rows, steps);
    for (int64_t row = 0; row < task.num_rows; row += rows)
      add_rows<false>(task, row, std::min(rows, task.num_rows - row), base);
  }

  // Calls `function(d, count)` for every kWidth dims; `count` is a constant for all but the last.
  template <class Function>
  void for_dims(Function function) const {
    int64_t d = 0;
    for (; d + kWidth <= a.dim; d += kWidth) function(d, std::integral_constant<int64_t, kWidth>{});
    if (d < a.dim) function(d, a.dim - d);
  }

  // kDepth keys, kWidth dims.
  ALWAYS_INLINE void load_values(int64_t key, int64_t d, int64_t count, Lanes* packed) const {
    for (int i = 0; i < kDepth; ++i) packed[i] = Products::load(value_at_[key + i] + d, count);
    Products::interleave(packed);
  }

  // keys_ is [dim / kDepth][kTile][kDepth]. A function of its own, so that registers suffice.
  __attribute__((noinline)) void pack_keys(int64_t begin, int64_t end) {
    for (int64_t key = begin; key < end; key += kLanes)
      for_dims([&](int64_t d, auto count) INLINE_BODY {
        Lanes packed[kLanes];
        for (int i = 0; i < kLanes; ++i) packed[i] = Products::load(key_at_[key + i] + d, count);
        native::transpose(packed);
        int64_t used = std::min<int64_t>(kLanes, (q_width_ - d) / kDepth);
        for (int64_t i = 0; i < used; ++i)
          Products::store_packed(keys_ + (d + i * kDepth) * kTile + key * kDepth, packed[i]);
      });
  }
  // values_ is [kTile / kDepth][width_][kDepth].
  void pack_values(int64_t begin, int64_t end) {
    for (int64_t key = begin; key < end; key += kDepth)
      for_dims([&](int64_t d, auto count) INLINE_BODY {
        Lanes packed[kDepth];
        load_values(key, d, count, packed);
        for (int i = 0; i < kDepth; ++i)
          Products::store_packed(values_ + key * width_ + (d + i * kLanes) * kDepth, packed[i]);
      });
  }

  // A sequence's block at this position; one head's keys are there first, its values further on.
  struct Block {
    const char *keys, *values;
    const float *key_scales, *value_scales;
  };
  Block block_at(const Task& task, int64_t position) const {
    int64_t id = a.block_tables[task.sequence * a.table_stride + position / a.block_size];
    int64_t key = task.head * a.block_size, value = key + a.kv_heads * a.block_size;
    const char* start = (const char*)a.cache + id * a.block_stride * element_size();
    const float* scales = a.scales + id * a.scales_stride;
    return {start + key * row_size(), start + value * row_size(), scales + key, scales + value};
  }
  int64_t element_size() const { return a.cache_format == kSame ? sizeof(T) : 1; }
  int64_t row_size() const { return a.dim * element_size(); }

  // Where keys begin .. end - 1 of a tile are. Behind the task's last key it is that one again.
  void find_keys(const Task& task, int64_t base, int64_t begin, int64_t end) {
    int64_t known = std::min(end, task.end - base), size = row_size(), last;
    for (int64_t i = begin; i < known; i = last) {
      Block block = block_at(task, base + i);
      int64_t slot = (base + i) % a.block_size;
      last = std::min(known, i + a.block_size - slot);
      if (a.cache_format != kSame) {
        unpack_keys(block, slot, i, last);
        continue;
      }
      const char *keys = block.keys + slot * size, *values = block.values + slot * size;
      for (int64_t j = i; j < last; ++j, keys += size, values += size) {
        key_at_[j] = (const T*)keys;
        value_at_[j] = (const T*)values;
      }
    }
    for (int64_t i = known; i < end; ++i) {
      key_at_[i] = key_at_[known - 1];
      value_at_[i] = value_at_[known - 1];
      key_scales_[i] = key_scales_[known - 1];
      value_scales_[i] = value_scales_[known - 1];
    }
  }

  void unpack_keys(const Block& block, int64_t slot, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i, ++slot) {
      key_scales_[i] = block.key_scales[slot];
      value_scales_[i] = block.value_scales[slot];
      key_at_[i] = unpack(block.keys + slot * a.dim, unpacked_ + 2 * i * a.dim);
      value_at_[i] = unpack(block.values + slot * a.dim, unpacked_ + (2 * i + 1) * a.dim);
    }
  }

  // A row of a packed cache, still without its scale: T holds such numbers exactly.
  const T* unpack(const char* row, T* to) const {
    if (a.cache_format == kInt8) unpack((const int8_t*)row, to);
    else unpack((const native::Float8*)row, to);
    return to;
  }
  template <class Byte>
  void unpack(const Byte* row, T* to) const {
    int64_t d = 0;
    for (; d + kLanes <= a.dim; d += kLanes) native::store_exact(to + d, load_lanes(row + d));
    if (d == a.dim) return;
    T rest[kLanes];
    native::store_exact(rest, native::load_some(row + d, a.dim - d));
    std::copy_n(rest, a.dim - d, to + d);
  }

  // At most kRows rows. `direct` reads the cache instead of packed keys and values.
  template <bool direct>
  void add_rows(const Task& task, int64_t row, int64_t count, int64_t base) {
    int64_t begin = visible(task, row, base).first / kLanes * kLanes;
    int64_t end = round_up(visible(task, row + count - 1, base).second, kLanes);
    if (begin >= end) return;
    with_constant<kRows>(count, [&](auto rows) {
      const Element* queries = queries_ + row * q_width_;
      float* sums = segment_.sums + row * width_;
      score_some<rows>(queries, begin, end);
      for (int64_t r = 0; r < count; ++r) weigh(visible(task, row + r, base), row + r, r);
      if constexpr (direct) mix_direct<rows>(sums, begin, end);
      else mix_packed<rows>(sums, begin, end);
    });
  }

  template <int rows>
  void score_some(const Element* queries, int64_t begin, int64_t end) {
    for (int64_t key = begin; key < end;) {
      int64_t columns = std::min<int64_t>(kColumns, (end - key) / kLanes);
      with_constant<kColumns>(columns, [&](auto c) { score<rows, c>(queries, key); });
      key += columns * kLanes;
    }
  }

  template <int rows, int columns>
  void score(const Element* queries, int64_t key) {
    Lanes sums[rows][columns];
    each<rows>([&](auto r) INLINE_BODY {
      each<columns>([&](auto c) INLINE_BODY { sums[r][c] = Lanes{}; });
    });
    for (int64_t d = 0; d < q_width_; d += kDepth)
      multiply_add(queries + d, q_width_, keys_ + d * kTile + key * kDepth, sums);
    each<rows>([&](auto r) INLINE_BODY {
      float* to = scores_ + r * kTile + key;
      each<columns>([&](auto c) INLINE_BODY { store(to + c * kLanes, sums[r][c]); });
    });
  }

  // One step of a matrix product: every row's next factors times `columns` packed registers.
  template <int rows, int columns>
  ALWAYS_INLINE static void multiply_add(const Element* factors, int64_t stride,
                                         const Element* from, Lanes (&sums)[rows][columns]) {
    Lanes packed[columns];
    each<columns>([&](auto c) INLINE_BODY {
      packed[c] = Products::load_packed(from + c * kLanes * kDepth);
    });
    multiply_add(factors, stride, packed, sums);
  }
  template <int rows, int columns>
  ALWAYS_INLINE static void multiply_add(const Element* factors, int64_t stride,
                                         const Lanes (&packed)[columns],
                                         Lanes (&sums)[rows][columns]) {
    each<rows>([&](auto r) INLINE_BODY {
      Lanes repeated = Products::repeat(factors + r * stride);
      each<columns>([&](auto c) INLINE_BODY {
        sums[r][c] = Products::multiply_add(sums[r][c], packed[c], repeated);
      });
    });
  }

  // Row `row` of the task, row `r` of a step: its scores become weights. Lanes outside of what it
  // sees may hold anything. One copy for all rows: copies could be compiled to round differently.
  __attribute__((noinline)) void weigh(std::pair<int64_t, int64_t> seen, int64_t row, int64_t r) {
    typedef uint32_t Indices __attribute__((vector_size(4 * kLanes)));
    constexpr int kCount = kTile / kLanes;
    Indices lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    uint32_t length = std::max<int64_t>(0, seen.second - seen.first);
    native::IntLanes sees[kCount];
    Lanes scores[kCount], weights[kCount], high = fill(kNone);
    for (int i = 0; i < kCount; ++i) {
      sees[i] = (native::IntLanes)(lane + uint32_t(i * kLanes - seen.first) < length);
      Lanes x = bend(load_lanes(scores_ + r * kTile + i * kLanes), i);
      scores[i] = sees[i] ? x : fill(kNone);
      high = native::larger(high, scores[i]);
    }
    float before = segment_.peaks[row], peak = std::max(before, native::largest(high));
    segment_.peaks[row] = peak;
    float shrink = before == peak ? 1.0f : native::exp2_nonpositive(fill(before - peak))[0];
    shrinks_[r] = shrink;
    for (int i = 0; i < kCount; ++i) {
      Lanes weight = native::exp2_nonpositive(scores[i] - peak);
      weights[i] = sees[i] ? weight : Lanes{};
    }
    Element* packed = weights_ + r * kTile;
    Products::pack_weights(weights, packed);
    float* total = segment_.totals + row * kLanes;
    Lanes shrunk = load_lanes(total) * shrink;
    // As rounded, so that the weights' sum is exactly one.
    store(total, Products::template add_weights<kCount>(shrunk, packed));
    if (a.cache_format == kSame) return;
    for (int i = 0; i < kCount; ++i) weights[i] *= load_lanes(value_scales_ + i * kLanes);
    Products::pack_weights(weights, packed);
  }

  // Products of queries and keys (of the tile's i-th kLanes) to scores, as powers of two.
  ALWAYS_INLINE Lanes bend(Lanes x, int i) const {
    if (a.cache_format != kSame) x *= load_lanes(key_scales_ + i * kLanes);
    if (a.soft_cap > 0)
      return native::tanh_lanes(x * (a.scale / a.soft_cap)) * (a.soft_cap * kLog2E);
    return x * (a.scale * kLog2E);
  }

  template <int rows>
  void mix_direct(float* to, int64_t begin, int64_t end) {
    constexpr int64_t kSome = kColumns * kLanes;
    std::integral_constant<int64_t, kWidth> whole;
    int64_t d = 0;
    for (; d + kSome <= a.dim; d += kSome)
      mix_direct<rows, kSome / kWidth>(to, d, whole, begin, end);
    for (; d + kWidth <= a.dim; d += kWidth) mix_direct<rows, 1>(to, d, whole, begin, end);
    if (d < a.dim) mix_direct<rows, 1>(to, d, a.dim - d, begin, end);
  }
  template <int rows, int parts, class Count>
  void mix_direct(float* to, int64_t d, Count count, int64_t begin, int64_t end) {
    Lanes sums[rows][parts * kDepth];
    load_sums(to + d, sums);
    for (int64_t key = begin; key < end; key += kDepth) {
      Lanes packed[parts * kDepth];
      each<parts>([&](auto p) INLINE_BODY {
        load_values(key, d + p * kWidth, count, packed + p * kDepth);
      });
      multiply_add(weights_ + key, kTile, packed, sums);
    }
    store_sums(to + d, sums);
  }

  template <int rows>
  void mix_packed(float* to, int64_t begin, int64_t end) {
    for (int64_t d = 0; d < width_; d += kColumns * kLanes) {
      int64_t columns = std::min<int64_t>(kColumns, (width_ - d) / kLanes);
      with_constant<kColumns>(columns, [&](auto c) { mix<rows, c>(to + d, d, begin, end); });
    }
  }

  template <int rows, int columns>
  void mix(float* to, int64_t d, int64_t begin, int64_t end) {
    Lanes sums[rows][columns];
    load_sums(to, sums);
    for (int64_t key = begin; key < end; key += kDepth)
      multiply_add(weights_ + key, kTile, values_ + key * width_ + d * kDepth, sums);
    store_sums(to, sums);
  }

  template <int rows, int columns>
  ALWAYS_INLINE void load_sums(const float* from, Lanes (&sums)[rows][columns]) const {
    each<rows>([&](auto r) INLINE_BODY {
      each<columns>([&](auto c) INLINE_BODY {
        sums[r][c] = load_lanes(from + r * width_ + c * kLanes) * shrinks_[r];
      });
    });
  }
  template <int rows, int columns>
  ALWAYS_INLINE void store_sums(float* to, const Lanes (&sums)[rows][columns]) const {
    each<rows>([&](auto r) INLINE_BODY {
      each<columns>([&](auto c) INLINE_BODY { store(to + r * width_ + c * kLanes, sums[r][c]); });
    });
  }

  void finish(const Task& task) {
    for (int64_t r = 0; r < task.num_rows; ++r) {
      Lanes* sums = (Lanes*)(sum_.sums + r * width_);
      Products::in_order(sums, width_ / kLanes);
      float total = native::sum(load_lanes(sum_.totals + r * kLanes));
      T* out = (T*)a.out + (token_of(task, r) * a.kv_heads * a.group + head_of(task, r)) * a.dim;
      for (int64_t d = 0; d < a.dim; ++d)
        out[d] = native::from_float<T>(sum_.sums[r * width_ + d] / total);
    }
  }

  // Memory of this thread, kept from call to call; 64-byte aligned.
  static float* scratch(int64_t floats) {
    thread_local std::vector<float> memory;
    if (int64_t(memory.size()) < floats + 16) memory.resize(floats + 16);
    return (float*)round_up((int64_t)memory.data(), 64);
  }
  template <class E>
  E* take(int64_t count) {
    E* taken = (E*)memory_;
    memory_ += round_up(divide_up(count * sizeof(E), 4), 16);
    return taken;
  }

  const Arguments& a;
  int64_t width_, q_width_;
  float* memory_;
  float *sum_memory_, *segment_memory_;
  Element *keys_, *values_, *weights_, *queries_;
  float *scores_, *shrinks_, *key_scales_, *value_scales_;
  T* unpacked_;
  const T *key_at_[kTile], *value_at_[kTile];
  State sum_, segment_;
};

// Tasks of about equal size, the costliest first. If they are fewer than the threads deserve, long
// contexts are cut into segments, whose results are merged afterwards.
struct Plan {
  struct Merge {
    Task task;
    int64_t num_segments;
  };
  std::vector<Task> tasks;
  std::vector<Merge> merges;
  int64_t num_threads, most_rows = 0, saved_floats = 0;

  Plan(const Arguments& a, int64_t width) {
    int64_t work = 0;
    for (int64_t s = 0; s < a.sequences; ++s)
      for (int64_t head = 0; head < a.kv_heads; ++head) {
        int64_t rows = (a.first_rows[s + 1] - a.first_rows[s]) * a.group;
        for (int64_t row = 0; row < rows; row += kMaxRows) {
          tasks.push_back(task(a, s, head, row, std::min(kMaxRows, rows - row)));
          most_rows = std::max(most_rows, tasks.back().num_rows);
          work += cost(tasks.back()) * a.dim;
        }
      }
    num_threads = native::worth_threads(work / 4) ? native::num_threads() : 1;
    if (num_threads > 1 && int64_t(tasks.size()) < 4 * num_threads) cut(width);
    std::stable_sort(tasks.begin(), tasks.end(),
                     [](const Task& x, const Task& y) { return cost(x) > cost(y); });
  }

 private:
  static int64_t cost(const Task& task) { return task.num_rows * (task.end - task.begin); }

  static Task task(const Arguments& a, int64_t s, int64_t head, int64_t row, int64_t num_rows) {
    int64_t first = a.context_lens[s] - (a.first_rows[s + 1] - a.first_rows[s]) + row / a.group;
    int64_t last = first + (row % a.group + num_rows - 1) / a.group;
    int64_t begin = a.window > 0 ? std::max<int64_t>(0, first + 1 - a.window) : 0;
    return {s, head, row, num_rows, begin, last + 1, -1};
  }

  void cut(int64_t width) {
    std::vector<Task> parts;
    for (const Task& task : tasks) {
      int64_t first = task.begin / kSegment, last = divide_up(task.end, kSegment);
      if (last - first == 1) {
        parts.push_back(task);
        continue;
      }
      merges.push_back({task, last - first});
      merges.back().task.saved_at = saved_floats;
      for (int64_t i = first; i < last; ++i) {
        Task part = task;
        part.begin = std::max(task.begin, i * kSegment);
        part.end = std::min(task.end, (i + 1) * kSegment);
        part.saved_at = saved_floats;
        parts.push_back(part);
        saved_floats += State::size(task.num_rows, width);
      }
    }
    tasks = std::move(parts);
  }
};

template <class T>
void attend(const Arguments& a) {
  Plan plan(a, Worker<T>::width(a));
  std::vector<float> saved(plan.saved_floats);
#pragma omp parallel num_threads(plan.num_threads) if (plan.num_threads > 1)
  {
    Worker<T> worker(a, plan.most_rows);
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < plan.tasks.size(); ++i) {
      const Task& task = plan.tasks[i];
      // Most likely this thread's next one.
      size_t next = std::min<size_t>(i + plan.num_threads, plan.tasks.size() - 1);
      worker.fetch(plan.tasks[next], plan.tasks[next].begin);
      worker.run(task, task.saved_at < 0 ? nullptr : saved.data() + task.saved_at);
    }
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < plan.merges.size(); ++i) {
      const Plan::Merge& merge = plan.merges[i];
      worker.combine(merge.task, saved.data() + merge.task.saved_at, merge.num_segments);
    }
  }
}

}  // namespace

extern "C" void tandem_paged_attention(
    int64_t dtype, const void* q, int64_t q_token_stride, int64_t q_head_stride, const void* cache,
    int64_t cache_format, int64_t block_stride, const float* scales, int64_t scales_stride,
    const int32_t* block_tables, int64_t table_stride, const int32_t* context_lens,
    const int32_t* first_rows, void* out, int64_t sequences, int64_t kv_heads, int64_t group,
    int64_t block_size, int64_t dim, int64_t window, float scale, float soft_cap) {
  Arguments a{q,         q_token_stride, q_head_stride, cache,        cache_format,   block_stride,
              scales,    scales_stride,  block_tables,  table_stride, context_lens, first_rows,
              out,       sequences,      kv_heads,      group,        block_size,   dim,
              window,    scale,          soft_cap};
  native::with_type(dtype, [&](auto* tag) { attend<std::remove_pointer_t<decltype(tag)>>(a); });
}
