// Softmax attention of whole sequences, a block of keys at a time (Dao et al. 2022,
// arXiv:2205.14135). A task packs a block's keys and values into tiles and takes all of its queries
// over them, a few at once; scores and weights of a block stay in the first-level cache.
//
// A query's sums begin anew for a larger score: what was summed before is multiplied by the weight
// that the old largest score has now. Blocks are the same for all queries, so a result does not
// depend on which queries share a task.
#include "pieces.h"
#include "products.h"
#include "vec.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

namespace {

using native::divide_up;
using native::kLanes;
using native::Lanes;

// Queries computed together, so that a packed vector is loaded once and sums do not wait for each
// other.
constexpr int64_t kQueries = kLanes == 16 ? 8 : 4;
// Vectors of values per pass: kQueries times as many accumulators, in 32 registers or 16.
constexpr int64_t kMaxVectors = 3;
constexpr int64_t kMinChunk = 64;  // queries of a task that make packing worthwhile
constexpr int64_t kMaxChunk = 1024;
// Of the second-level cache, for the sums of a task and for a block's keys.
constexpr int64_t kSumBytes = 512 << 10, kBlockBytes = 128 << 10;
constexpr int64_t kMaxBlock = 1024;
// From query to query, in scores and weights: a constant, so that addresses take no registers, and
// no multiple of 4 KB.
constexpr int64_t kStride = kMaxBlock + 32;

constexpr float kNothing = -std::numeric_limits<float>::infinity();  // the score of no key

// One tensor's start and strides by row, head and token, in elements.
template <class T>
struct Heads {
  const T* data;
  int64_t row, head, token;
  const T* at(int64_t r, int64_t h) const { return data + r * row + h * head; }
};

// Working memory of a thread, and the arithmetic on one head.
template <class T>
class Head {
  using Products = typename native::ProductsOf<T>::Type;
  using Element = typename Products::Element;
  using Turned = native::Turned<Products, T>;
  static constexpr int64_t kDepth = Products::kDepth;
  static constexpr int64_t kTurned = kLanes * Turned::kDims;  // dims that are transposed at once

 public:
  Head(int64_t num_keys, int64_t head_dim, int64_t chunk)
      : num_keys_(num_keys),
        head_dim_(head_dim),
        block_(std::min(divide_up(num_keys, kLanes) * kLanes, block_of(head_dim))),
        dims_(divide_up(head_dim, kDepth) * kDepth),
        vectors_(divide_up(head_dim, kLanes)),
        width_(vectors_ * kLanes),
        scale_(1.44269504f / std::sqrt(float(head_dim))),
        nothing_(head_dim),
        keys_(block_ * dims_),
        values_(block_ * width_),
        queries_(chunk * dims_),
        weights_(kQueries * kStride),
        scores_(kQueries * kStride),
        mixed_(chunk * width_),
        tops_(chunk),
        sums_(chunk * kLanes) {}

  // Computes `count` queries, at most a chunk. Rows are strided.
  void attend(const T* query, int64_t query_stride, const T* key, int64_t key_stride,
              const T* value, int64_t value_stride, T* out, int64_t out_stride, int64_t count) {
    int64_t padded = divide_up(count, kQueries) * kQueries;
    for (int64_t q = 0; q < padded; ++q)
      for (int64_t d = 0; d < head_dim_; ++d)
        queries_[place_of(q, d)] = q < count ? convert(query[q * query_stride + d]) : Element{};
    std::fill_n(mixed_.begin(), padded * width_, 0.0f);
    std::fill_n(tops_.begin(), padded, kNothing);
    std::fill_n(sums_.begin(), padded * kLanes, 0.0f);
    for (int64_t first = 0; first < num_keys_; first += block_) {
      int64_t num_keys = std::min(block_, num_keys_ - first);
      pack_keys(key + first * key_stride, key_stride, num_keys);
      pack_values(value + first * value_stride, value_stride, num_keys);
      for (int64_t q = 0; q < padded; q += kQueries) add_block(q, num_keys);
    }
    for (int64_t q = 0; q < count; ++q) {
      float sum = native::sum(native::load_lanes(&sums_[q * kLanes]));
      for (int64_t d = 0; d < head_dim_; ++d)
        out[q * out_stride + d] = native::from_float<T>(mixed_[q * width_ + d] / sum);
    }
  }

 private:
  // Keys of a block, whose packed keys and values take about a quarter of a second-level cache.
  static int64_t block_of(int64_t head_dim) {
    int64_t most = kBlockBytes / int64_t(head_dim * sizeof(Element));
    return std::clamp<int64_t>(most / kLanes * kLanes, 4 * kLanes, kMaxBlock);
  }

  static Element convert(T x) {
    if constexpr (std::is_same_v<T, Element>) return x;
    else return native::to_float(x);
  }

  // queries_[query / kQueries][dim group][query % kQueries][i]: dimension group * depth + i.
  int64_t place_of(int64_t q, int64_t d) const {
    int64_t first = q / kQueries * kQueries;
    return first * dims_ + d / kDepth * kDepth * kQueries + (q - first) * kDepth + d % kDepth;
  }

  // keys_[key / 16][dim group][lane][i]: dimension group * depth + i.
  void pack_keys(const T* key, int64_t stride, int64_t count) {
    for (int64_t first = 0; first < count; first += kLanes) {
      const T* rows[kLanes];
      for (int64_t i = 0; i < kLanes; ++i)
        rows[i] = first + i < count ? key + (first + i) * stride : nothing_.data();
      for (int64_t d = 0; d < head_dim_; d += kTurned) {
        int64_t some = std::min(kTurned, head_dim_ - d);
        Lanes turned[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) turned[i] = Turned::load(rows[i] + d, some);
        native::transpose(turned);
        Element* to = &keys_[first * dims_ + d * kLanes];
        for (int64_t i = 0; i * Turned::kDims < some; ++i, to += Turned::kDims * kLanes)
          Turned::store(to, kLanes, some - i * Turned::kDims, turned[i]);
      }
    }
  }

  // values_[key group][vector][lane][i]: key group * depth + i; zeros after the last key.
  void pack_values(const T* value, int64_t stride, int64_t count) {
    for (int64_t key = 0; key < count; key += kDepth)
      for (int64_t d = 0; d < head_dim_; d += kLanes) {
        Lanes rows[kDepth] = {};
        for (int64_t i = 0; i < kDepth && key + i < count; ++i)
          rows[i] = native::load_some(value + (key + i) * stride + d, head_dim_ - d);
        // A bf16 number is the upper half of the same fp32 number.
        if constexpr (kDepth == 2)
          rows[0] = (Lanes)(((native::IntLanes)rows[0] >> 16 & 0xffff) | (native::IntLanes)rows[1]);
        Products::store_packed(&values_[key * width_ + d * kDepth], rows[0]);
      }
  }

  // Takes a few queries over the packed block.
  void add_block(int64_t query, int64_t num_keys) {
    Lanes tops[kQueries], factors[kQueries];
    for (int64_t q = 0; q < kQueries; ++q) tops[q] = native::fill(kNothing);
    for (int64_t key = 0; key < num_keys; key += 2 * kLanes) {
      if (key + kLanes < num_keys) score<2>(query, key, num_keys - key, tops);
      else score<1>(query, key, num_keys - key, tops);
    }
    for (int64_t q = 0; q < kQueries; ++q) factors[q] = raise_top(tops_[query + q], tops[q]);
    for (int64_t q = 0; q < kQueries; ++q)
      weigh(q, num_keys, tops[q], factors[q], &sums_[(query + q) * kLanes]);
    // Passes have about equal widths: a narrow one would wait for its own sums.
    int64_t width = divide_up(vectors_, divide_up(vectors_, kMaxVectors));
    int64_t groups = divide_up(num_keys, kDepth);
    for (int64_t first = 0; first < vectors_; first += width)
      native::with_constant<kMaxVectors>(
          std::min(width, vectors_ - first),
          [&](auto vectors) INLINE_BODY { mix<vectors>(query, first, factors, groups); });
  }

  // Scores of some keys, of which `num_keys` exist, and the largest of each lane. In functions of
  // their own these loops have all registers.
  template <int64_t vectors>
  __attribute__((noinline)) void score(int64_t query, int64_t key, int64_t num_keys,
                                       Lanes* tops) {
    Lanes sums[kQueries][vectors] = {};
    const Element* packed = &keys_[key * dims_];
    const Element* queries = &queries_[query * dims_];
    for (int64_t d = 0; d < dims_; d += kDepth) {
      Lanes keys[vectors];
#pragma GCC unroll 2
      for (int64_t v = 0; v < vectors; ++v)
        keys[v] = Products::load_packed(packed + (v * dims_ + d) * kLanes);
#pragma GCC unroll 8
      for (int64_t q = 0; q < kQueries; ++q) {
        Lanes number = Products::repeat(queries + d * kQueries + q * kDepth);
#pragma GCC unroll 2
        for (int64_t v = 0; v < vectors; ++v)
          sums[q][v] = Products::multiply_add(sums[q][v], keys[v], number);
      }
    }
    if (num_keys < vectors * kLanes) {
      native::IntLanes is_missing;
      for (int i = 0; i < kLanes; ++i)
        is_missing[i] = -(i >= num_keys - (vectors - 1) * kLanes);
#pragma GCC unroll 8
      for (int64_t q = 0; q < kQueries; ++q)
        sums[q][vectors - 1] = is_missing ? native::fill(kNothing) : sums[q][vectors - 1];
    }
#pragma GCC unroll 8
    for (int64_t q = 0; q < kQueries; ++q)
#pragma GCC unroll 2
      for (int64_t v = 0; v < vectors; ++v) {
        native::store(&scores_[q * kStride + key + v * kLanes], sums[q][v]);
        tops[q] = native::larger(sums[q][v], tops[q]);
      }
  }

  // Raises a query's largest score so far, in all lanes, to that of a block; returns the factor of
  // what was summed before.
  ALWAYS_INLINE Lanes raise_top(float& top, Lanes& tops) {
    Lanes before = native::fill(top);
    tops = native::larger(native::combine_everywhere(tops, native::larger), before);
    top = tops[0];
    return native::exp2_nonpositive((before - tops) * scale_);
  }

  // Turns a query's scores into weights that are not normalised yet, and adds them to their sums.
  // Missing keys get weights of at most 2^-125.
  ALWAYS_INLINE void weigh(int64_t q, int64_t num_keys, Lanes top, Lanes factor, float* sums) {
    const float* scores = &scores_[q * kStride];
    Element* weights = &weights_[q * kStride];
    Lanes sum = native::load_lanes(sums) * factor, scale = native::fill(scale_);
    Lanes shift = -top * scale;
    for (int64_t k = 0; k < num_keys; k += kLanes) {
      Lanes power = native::multiply_add(native::load_lanes(scores + k), scale, shift);
      Lanes weight = native::exp2_nonpositive(power);
      Products::store(weights + k, weight);
      sum += weight;
    }
    native::store(sums, sum);
  }

  template <int64_t vectors>
  __attribute__((noinline)) void mix(int64_t query, int64_t first, const Lanes* factors,
                                     int64_t groups) {
    Lanes mixed[kQueries][vectors];
    float* to = &mixed_[query * width_ + first * kLanes];
#pragma GCC unroll 8
    for (int64_t q = 0; q < kQueries; ++q)
#pragma GCC unroll 3
      for (int64_t v = 0; v < vectors; ++v)
        mixed[q][v] = native::load_lanes(to + q * width_ + v * kLanes) * factors[q];
    const Element* packed = &values_[first * kLanes * kDepth];
    const Element* weights = weights_.data();
    for (int64_t k = 0; k < groups; ++k) {
      Lanes values[vectors];
#pragma GCC unroll 3
      for (int64_t v = 0; v < vectors; ++v)
        values[v] = Products::load_packed(packed + (k * vectors_ + v) * kLanes * kDepth);
#pragma GCC unroll 8
      for (int64_t q = 0; q < kQueries; ++q) {
        Lanes weight = Products::repeat(weights + q * kStride + k * kDepth);
#pragma GCC unroll 3
        for (int64_t v = 0; v < vectors; ++v)
          mixed[q][v] = Products::multiply_add(mixed[q][v], values[v], weight);
      }
    }
#pragma GCC unroll 8
    for (int64_t q = 0; q < kQueries; ++q)
#pragma GCC unroll 3
      for (int64_t v = 0; v < vectors; ++v)
        native::store(to + q * width_ + v * kLanes, mixed[q][v]);
  }

  int64_t num_keys_, head_dim_, block_, dims_, vectors_, width_;
  float scale_;  // uses powers of two instead of e
  std::vector<T> nothing_;
  // Padding of dims stays zero.
  std::vector<Element> keys_, values_, queries_, weights_;
  std::vector<float> scores_, mixed_, tops_, sums_;
};

template <class T>
void attend(Heads<T> query, Heads<T> key, Heads<T> value, T* out, int64_t rows, int64_t heads,
            int64_t num_queries, int64_t num_keys, int64_t head_dim) {
  int64_t wanted = divide_up(4 * native::num_threads(), std::max<int64_t>(1, rows * heads));
  int64_t most = std::min(kMaxChunk, kSumBytes / (4 * std::max<int64_t>(head_dim, kLanes)));
  int64_t chunk = std::clamp(divide_up(num_queries, wanted), kMinChunk, most);
  chunk = divide_up(std::min(chunk, num_queries), kQueries) * kQueries;
  int64_t chunks = chunk ? divide_up(num_queries, chunk) : 0, stride = heads * head_dim;
  int64_t work = rows * heads * num_queries * num_keys * head_dim;
  int64_t threads = native::worth_threads(work / 8) ? native::num_threads() : 1;
  native::share_pieces(rows * heads * chunks, threads, [&](native::Pieces& pieces) {
    Head<T> head(num_keys, head_dim, chunk);
    for (int64_t piece; pieces.take(piece);) {
      int64_t r = piece / chunks / heads, h = piece / chunks % heads, q = piece % chunks * chunk;
      head.attend(query.at(r, h) + q * query.token, query.token, key.at(r, h), key.token,
                  value.at(r, h), value.token, out + (r * num_queries + q) * stride + h * head_dim,
                  stride, std::min(chunk, num_queries - q));
    }
  });
}

}  // namespace

extern "C" void tandem_attention(int64_t dtype, const void* query, int64_t query_row,
                                 int64_t query_head, int64_t query_token, const void* key,
                                 int64_t key_row, int64_t key_head, int64_t key_token,
                                 const void* value, int64_t value_row, int64_t value_head,
                                 int64_t value_token, void* out, int64_t rows, int64_t heads,
                                 int64_t num_queries, int64_t num_keys, int64_t head_dim) {
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    attend(Heads<T>{(const T*)query, query_row, query_head, query_token},
           Heads<T>{(const T*)key, key_row, key_head, key_token},
           Heads<T>{(const T*)value, value_row, value_head, value_token}, (T*)out, rows, heads,
           num_queries, num_keys, head_dim);
  });
}
