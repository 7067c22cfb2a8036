// The keys and values that are read together.
#pragma once
#include <algorithm>
#include <type_traits>

#include "ahead.h"
#include "products.h"
#include "scratch.h"
#include "state.h"
#include "task.h"

namespace {

// Some keys and values of a head: their places, and packed for products. T is the storage type of
// caches that are not packed.
template <class T>
class Tile {
  using Products = typename native::ProductsOf<T>::Type;
  using Turned = native::Turned<Products, T>;
  using Element = typename Products::Element;
  static constexpr int kDepth = Products::kDepth;
  static constexpr int kWidth = kDepth * kLanes;  // Dims that are read together.

 public:
  // Dims of packed values, and of packed keys and queries.
  static int64_t width(const Arguments& a) { return round_up(a.dim, kWidth); }
  static int64_t q_width(const Arguments& a) { return round_up(a.dim, kDepth); }
  static int64_t scratch_size(const Arguments& a) {
    return kTile * (q_width(a) + width(a) + 2 * a.dim + 2);
  }

  Tile(const Arguments& a, Scratch& scratch)
      : a(a),
        width_(width(a)),
        q_width_(q_width(a)),
        keys_(scratch.take<Element>(kTile * q_width_)),
        values_(scratch.take<Element>(kTile * width_)),
        key_scales_(scratch.take<float>(kTile)),
        value_scales_(scratch.take<float>(kTile)),
        unpacked_(scratch.take<T>(2 * kTile * a.dim)) {}

  // Announces that the tile at `base` comes next, after one row's work with `keys` keys of this
  // one. Blocks are far apart, so the processor cannot predict the next one.
  void will_read(const Task& task, int64_t base, int64_t keys) {
    ahead_.clear();
    int64_t end = std::min(base + kTile, task.end), last;
    for (int64_t at = std::max(base, task.begin); at < end; at = last) {
      Block block = block_at(task, at);
      int64_t slot = at % a.block_size;
      last = std::min(end, at + a.block_size - slot);
      ahead_.add(block.keys + slot * row_size(), (last - at) * row_size());
      if (a.parts > 1) ahead_.add(block.values + slot * row_size(), (last - at) * row_size());
    }
    ahead_.divide(keys / kLanes * divide_up(a.dim, Turned::kDims * kLanes) +
                  divide_up(q_width_, kDepth * kTurn) +
                  keys / (kDepth * kTurn) * divide_up(a.dim, kTile));
  }
  // Called at each step of packing, and at every kTurn-th step of scoring and mixing.
  void fetch_some() const { ahead_.fetch(); }

  // Finds keys begin .. end - 1 of a tile. After the task's last key that key is repeated.
  void find(const Task& task, int64_t base, int64_t begin, int64_t end) {
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

  // keys_ is [dim / kDepth][kTile][kDepth]. A function of its own, so that registers suffice.
  __attribute__((noinline)) void pack_keys(int64_t begin, int64_t end) {
    constexpr int kDims = Turned::kDims, kSome = kDims * kLanes;
    for (int64_t key = begin; key < end; key += kLanes) {
      int64_t d = 0;
      for (; d + kSome <= a.dim; d += kSome)
        turn(key, d, std::integral_constant<int64_t, kSome>{});
      if (d < a.dim) turn(key, d, a.dim - d);
    }
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

  const Element* keys() const { return keys_; }
  const Element* values() const { return values_; }

  // One scale per key, with packed caches only.
  const float* key_scales() const { return key_scales_; }
  const float* value_scales() const { return value_scales_; }

  // Loads kDepth keys, kWidth dims.
  ALWAYS_INLINE void load_values(int64_t key, int64_t d, int64_t count, Lanes* packed) const {
    for (int i = 0; i < kDepth; ++i) packed[i] = Products::load(value_at_[key + i] + d, count);
    Products::interleave(packed);
  }

 private:
  // Transposes kLanes keys to lanes, for `count` of their dims.
  template <class Count>
  ALWAYS_INLINE void turn(int64_t key, int64_t d, Count count) {
    fetch_some();
    Lanes turned[kLanes];
    for (int i = 0; i < kLanes; ++i) turned[i] = Turned::load(key_at_[key + i] + d, count);
    native::transpose(turned);
    Element* to = keys_ + d * kTile + key * kDepth;
    for (int i = 0; i * Turned::kDims < count; ++i)
      Turned::store(to + i * Turned::kDims * kTile, kTile, count - i * Turned::kDims, turned[i]);
  }

  // Calls `function(d, count)` for every kWidth dims; `count` is a constant for all but the last.
  template <class Function>
  void for_dims(Function function) const {
    int64_t d = 0;
    for (; d + kWidth <= a.dim; d += kWidth) function(d, std::integral_constant<int64_t, kWidth>{});
    if (d < a.dim) function(d, a.dim - d);
  }

  // A sequence's block at this position; one head's keys come first, its own values further on.
  struct Block {
    const char *keys, *values;
    const float *key_scales, *value_scales;
  };
  Block block_at(const Task& task, int64_t position) const {
    int64_t id = a.block_tables[task.sequence * a.table_stride + position / a.block_size];
    int64_t key = task.head * a.block_size, value = key + (a.parts - 1) * a.kv_heads * a.block_size;
    const char* start = (const char*)a.cache + id * a.block_stride * element_size();
    const float* scales = a.scales + id * a.scales_stride;
    return {start + key * row_size(), start + value * row_size(), scales + key, scales + value};
  }
  int64_t element_size() const { return a.cache_format == kSame ? sizeof(T) : 1; }
  int64_t row_size() const { return a.dim * element_size(); }

  void unpack_keys(const Block& block, int64_t slot, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i, ++slot) {
      key_scales_[i] = block.key_scales[slot];
      value_scales_[i] = block.value_scales[slot];
      key_at_[i] = unpack(block.keys + slot * a.dim, unpacked_ + 2 * i * a.dim);
      value_at_[i] = unpack(block.values + slot * a.dim, unpacked_ + (2 * i + 1) * a.dim);
    }
  }

  // Unpacks a row of a packed cache, without its scale: T holds such numbers exactly.
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

  const Arguments& a;
  int64_t width_, q_width_;
  Element *keys_, *values_;
  float *key_scales_, *value_scales_;
  T* unpacked_;
  const T *key_at_[kTile], *value_at_[kTile];
  mutable Ahead ahead_;
};

}  // namespace
