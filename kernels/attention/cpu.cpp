// Softmax attention of whole sequences. A task packs the keys and values of one head into tiles and
// runs a few queries at a time over all of them: scores, softmax and mixture stay in the cache.
#include "pieces.h"
#include "vec.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace {

using native::kLanes;
using native::Lanes;

// Queries computed together, so that a packed vector is loaded once and sums do not wait for each
// other.
constexpr int64_t kQueries = kLanes == 16 ? 8 : 4;
// Vectors of values per pass: kQueries times as many accumulators, in 32 registers or 16.
constexpr int64_t kMaxVectors = 3;
constexpr int64_t kMinChunk = 64;  // Queries that make packing worthwhile.

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The products of a dot product are computed singly in fp32 ...
struct Singles {
  using Element = float;
  static constexpr int64_t kDepth = 1;
  template <class T>
  static float convert(T x) { return native::to_float(x); }
  static Lanes multiply_add(Lanes sum, const float* packed, const float* one) {
    return native::multiply_add(native::load_lanes(packed), native::fill(*one), sum);
  }
  static void store(float* to, Lanes x) { native::store(to, x); }
};

#if defined(__AVX512BF16__)
// ... or in pairs of bf16 numbers, summed in fp32.
struct Pairs {
  using Element = uint16_t;
  static constexpr int64_t kDepth = 2;
  static uint16_t convert(native::BFloat16 x) { return x.bits; }
  static uint16_t convert(float x) { return native::from_float<native::BFloat16>(x).bits; }
  static Lanes multiply_add(Lanes sum, const uint16_t* packed, const uint16_t* pair) {
    int32_t bits;
    std::memcpy(&bits, pair, 4);
    return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(packed),
                                   (__m512bh)_mm512_set1_epi32(bits));
  }
  // Rounds as `native::store` does, in one instruction; weights are neither NaN nor denormal.
  static void store(uint16_t* to, Lanes x) {
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
  }
};
#endif

// The kind of products for a storage type.
template <class T>
struct ProductsOf {
  using Type = Singles;
};
#if defined(__AVX512BF16__)
template <>
struct ProductsOf<native::BFloat16> {
  using Type = Pairs;
};
#endif

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
  using Products = typename ProductsOf<T>::Type;
  using Element = typename Products::Element;
  static constexpr int64_t kDepth = Products::kDepth;

 public:
  Head(int64_t num_keys, int64_t head_dim)
      : num_keys_(num_keys),
        head_dim_(head_dim),
        key_blocks_(divide_up(num_keys, kLanes)),
        key_groups_(divide_up(num_keys, kDepth)),
        dim_groups_(divide_up(head_dim, kDepth)),
        vectors_(divide_up(head_dim, kLanes)),
        scale_(1.44269504f / std::sqrt(float(head_dim))),
        keys_(key_blocks_ * dim_groups_ * kLanes * kDepth),
        values_(key_groups_ * vectors_ * kLanes * kDepth),
        queries_(kQueries * dim_groups_ * kDepth),
        weights_(kQueries * padded_keys()),
        scores_(kQueries * padded_keys()) {}

  // keys_[block][dim group][lane][i]: key block·16 + lane, dimension group·depth + i. values_[key
  // group][vector][lane][i]: key group·depth + i, dimension vector·16 + lane.
  void pack(const T* key, int64_t key_stride, const T* value, int64_t value_stride) {
    for (int64_t k = 0; k < num_keys_; ++k) {
      const T* from = key + k * key_stride;
      Element* to = &keys_[(k / kLanes * dim_groups_ * kLanes + k % kLanes) * kDepth];
      for (int64_t d = 0; d < head_dim_; ++d)
        to[d / kDepth * kLanes * kDepth + d % kDepth] = Products::convert(from[d]);
    }
    for (int64_t k = 0; k < num_keys_; ++k) {
      const T* from = value + k * value_stride;
      Element* to = &values_[k / kDepth * vectors_ * kLanes * kDepth + k % kDepth];
      for (int64_t d = 0; d < head_dim_; ++d) to[d * kDepth] = Products::convert(from[d]);
    }
  }

  // Computes at most kQueries queries. Rows of `query` and `out` are strided.
  void attend(const T* query, int64_t query_stride, T* out, int64_t out_stride, int64_t count) {
    for (int64_t q = 0; q < kQueries; ++q)
      for (int64_t d = 0; d < head_dim_; ++d)
        queries_[q * dim_groups_ * kDepth + d] =
            q < count ? Products::convert(query[q * query_stride + d]) : Element(0);
    score();
    float sums[kQueries];
    for (int64_t q = 0; q < kQueries; ++q) sums[q] = weigh(q);
    // Passes have about equal widths: a narrow one would wait for its own sums.
    int64_t width = divide_up(vectors_, divide_up(vectors_, kMaxVectors));
    for (int64_t first = 0; first < vectors_; first += width)
      mix_some(first, std::min(width, vectors_ - first), sums, out, out_stride, count);
  }

 private:
  int64_t padded_keys() const { return key_blocks_ * kLanes; }

  void score() {
    for (int64_t block = 0; block < key_blocks_; block += 2) {
      if (block + 1 < key_blocks_) score_blocks<2>(block);
      else score_blocks<1>(block);
    }
  }

  template <int64_t blocks>
  void score_blocks(int64_t first) {
    Lanes sums[kQueries][blocks] = {};
    const Element* packed = &keys_[first * dim_groups_ * kLanes * kDepth];
    const Element* query = queries_.data();
    for (int64_t d = 0; d < dim_groups_; ++d)
#pragma GCC unroll 2
      for (int64_t b = 0; b < blocks; ++b)
#pragma GCC unroll 8
        for (int64_t q = 0; q < kQueries; ++q)
          sums[q][b] = Products::multiply_add(
              sums[q][b], packed + (b * dim_groups_ + d) * kLanes * kDepth,
              query + (q * dim_groups_ + d) * kDepth);
#pragma GCC unroll 8
    for (int64_t q = 0; q < kQueries; ++q)
#pragma GCC unroll 2
      for (int64_t b = 0; b < blocks; ++b)
        native::store(&scores_[q * padded_keys() + (first + b) * kLanes], sums[q][b]);
  }

  // Turns a query's scores into weights that are not normalised yet; returns their sum. Padding
  // gets weights of at most 2^-125.
  float weigh(int64_t q) {
    float* scores = &scores_[q * padded_keys()];
    Element* weights = &weights_[q * padded_keys()];
    std::fill(scores + num_keys_, scores + padded_keys(), -std::numeric_limits<float>::infinity());
    Lanes tops = native::load_lanes(scores);
    for (int64_t k = kLanes; k < padded_keys(); k += kLanes)
      tops = native::larger(native::load_lanes(scores + k), tops);
    Lanes top = native::fill(native::largest(tops)), sums = {};
    for (int64_t k = 0; k < padded_keys(); k += kLanes) {
      Lanes distance = native::load_lanes(scores + k) - top;
      Lanes weight = native::exp2_nonpositive(distance * scale_);
      Products::store(weights + k, weight);
      sums += weight;
    }
    return native::sum(sums);
  }

  void mix_some(int64_t first, int64_t vectors, const float* sums, T* out, int64_t out_stride,
                int64_t count) {
    switch (vectors) {
      case 1: return mix<1>(first, sums, out, out_stride, count);
      case 2: return mix<2>(first, sums, out, out_stride, count);
      default: return mix<3>(first, sums, out, out_stride, count);
    }
  }

  template <int64_t vectors>
  void mix(int64_t first, const float* sums, T* out, int64_t out_stride, int64_t count) {
    Lanes mixed[kQueries][vectors] = {};
    const Element* packed = &values_[first * kLanes * kDepth];
    const Element* weights = weights_.data();
    for (int64_t k = 0; k < key_groups_; ++k)
#pragma GCC unroll 3
      for (int64_t v = 0; v < vectors; ++v)
#pragma GCC unroll 8
        for (int64_t q = 0; q < kQueries; ++q)
          mixed[q][v] = Products::multiply_add(mixed[q][v],
                                               packed + (k * vectors_ + v) * kLanes * kDepth,
                                               weights + q * padded_keys() + k * kDepth);
    // In registers, since every loop over them is unrolled and nothing takes their address.
#pragma GCC unroll 8
    for (int64_t q = 0; q < kQueries; ++q)
#pragma GCC unroll 3
      for (int64_t v = 0; v < vectors; ++v)
        native::store(mixed_ + (q * vectors + v) * kLanes, mixed[q][v] / native::fill(sums[q]));
    int64_t begin = first * kLanes, width = std::min(head_dim_ - begin, vectors * kLanes);
    for (int64_t q = 0; q < count; ++q)
      for (int64_t d = 0; d < width; ++d)
        out[q * out_stride + begin + d] = native::from_float<T>(mixed_[q * vectors * kLanes + d]);
  }

  int64_t num_keys_, head_dim_, key_blocks_, key_groups_, dim_groups_, vectors_;
  float scale_;  // Uses powers of two instead of e.
  // Padding stays zero.
  std::vector<Element> keys_, values_, queries_, weights_;
  std::vector<float> scores_;
  alignas(64) float mixed_[kQueries * kMaxVectors * kLanes];
};

template <class T>
void attend(Heads<T> query, Heads<T> key, Heads<T> value, T* out, int64_t rows, int64_t heads,
            int64_t num_queries, int64_t num_keys, int64_t head_dim) {
  int64_t most = std::max<int64_t>(1, num_queries / kMinChunk);
  int64_t wanted = divide_up(4 * native::num_threads(), std::max<int64_t>(1, rows * heads));
  int64_t chunks = std::min(most, wanted);
  int64_t chunk = divide_up(divide_up(num_queries, chunks), kQueries) * kQueries;
  int64_t work = rows * heads * num_queries * num_keys * head_dim;
  int64_t threads = native::worth_threads(work / 8) ? native::num_threads() : 1;
  native::share_pieces(rows * heads * chunks, threads, [&](native::Pieces& pieces) {
    Head<T> head(num_keys, head_dim);
    for (int64_t piece; pieces.take(piece);) {
      int64_t r = piece / chunks / heads, h = piece / chunks % heads, c = piece % chunks;
      head.pack(key.at(r, h), key.token, value.at(r, h), value.token);
      int64_t end = std::min(num_queries, (c + 1) * chunk), stride = heads * head_dim;
      for (int64_t q = c * chunk; q < end; q += kQueries)
        head.attend(query.at(r, h) + q * query.token, query.token,
                    out + (r * num_queries + q) * stride + h * head_dim, stride,
                    std::min(kQueries, end - q));
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
