// Attention of single decoded tokens over the paged cache: reads blocks where they lie.
//
// One task is one sequence and one key head with the G query heads that share it. It walks the
// block table once, with a running maximum and sum (Milakov and Gimelshein 2018, arXiv:1805.02867),
// so its result does not depend on what else is in the batch or on the number of threads.
#include <algorithm>
#include <vector>

#include "native.h"

namespace {

constexpr float kMasked = -INFINITY;
constexpr int kMaxBlockSize = 256;

// Scores of one block become weights. Returns by how much earlier sums shrink to the new maximum.
inline float weigh(float* score, int64_t first, int64_t last, float& peak, float& total) {
  float highest = peak;
  for (int64_t j = first; j < last; ++j) highest = std::max(highest, score[j]);
  float shrink = peak == kMasked ? 0.0f : native::exp_nonpositive(peak - highest);
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = first; j < last; ++j) {
    score[j] = native::exp_nonpositive(score[j] - highest);
    sum += score[j];
  }
  peak = highest;
  total = total * shrink + sum;
  return shrink;
}

// Sixteen numbers; compilers split them on machines with shorter registers.
typedef float Vec __attribute__((vector_size(64)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Vec load(const native::BFloat16* p) {
  typedef uint16_t Halves __attribute__((vector_size(32)));
  typedef uint32_t Words __attribute__((vector_size(64)));
  Halves h;
  std::memcpy(&h, p, sizeof h);
  Words w = __builtin_convertvector(h, Words) << 16;
  Vec v;
  std::memcpy(&v, &w, sizeof v);
  return v;
}

inline float sum(Vec v) {
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return v[0] + v[1];
}

// A task whose head dimension D and group size G are known: keys and sums stay in registers.
template <class T, int D, int G>
struct FixedTask {
  Vec q[G][D / 16], acc[G][D / 16];
  float scores[G][kMaxBlockSize], peak[G], total[G];

  FixedTask(int64_t, int64_t, int64_t, float scale) : scale(scale) {}

  void start(const T* query, int64_t head_stride) {
    for (int g = 0; g < G; ++g) {
      for (int c = 0; c < D / 16; ++c) {
        q[g][c] = load(query + g * head_stride + 16 * c) * scale;
        acc[g][c] = Vec{};
      }
      peak[g] = kMasked;
      total[g] = 0;
    }
  }

  void add_block(const T* keys, const T* values, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      Vec key[D / 16];
      for (int c = 0; c < D / 16; ++c) key[c] = load(keys + j * D + 16 * c);
      for (int g = 0; g < G; ++g) {
        Vec products = q[g][0] * key[0];
        for (int c = 1; c < D / 16; ++c) products += q[g][c] * key[c];
        scores[g][j] = sum(products);
      }
    }
    float shrink[G];
    for (int g = 0; g < G; ++g) shrink[g] = weigh(scores[g], first, last, peak[g], total[g]);
    for (int c = 0; c < D / 16; ++c) {
      Vec sums[G];
      for (int g = 0; g < G; ++g) sums[g] = acc[g][c] * shrink[g];
      for (int64_t j = first; j < last; ++j) {
        Vec value = load(values + j * D + 16 * c);
        for (int g = 0; g < G; ++g) sums[g] += scores[g][j] * value;
      }
      for (int g = 0; g < G; ++g) acc[g][c] = sums[g];
    }
  }

  void finish(T* out, int64_t head_stride) {
    for (int g = 0; g < G; ++g)
      for (int c = 0; c < D / 16; ++c)
        for (int i = 0; i < 16; ++i)
          out[g * head_stride + 16 * c + i] = native::from_float<T>(acc[g][c][i] / total[g]);
  }

 private:
  float scale;
};

// A task of any shape.
template <class T>
struct AnyTask {
  int64_t group, dim, block_size;
  float scale;
  std::vector<float> q, acc, scores, row, peak, total;

  AnyTask(int64_t group, int64_t dim, int64_t block_size, float scale)
      : group(group), dim(dim), block_size(block_size), scale(scale), q(group * dim),
        acc(group * dim), scores(group * block_size), row(dim), peak(group), total(group) {}

  void start(const T* query, int64_t head_stride) {
    for (int64_t g = 0; g < group; ++g)
      for (int64_t d = 0; d < dim; ++d)
        q[g * dim + d] = native::to_float(query[g * head_stride + d]) * scale;
    std::fill(acc.begin(), acc.end(), 0.0f);
    std::fill(peak.begin(), peak.end(), kMasked);
    std::fill(total.begin(), total.end(), 0.0f);
  }

  // Keys first .. last - 1 of one block.
  void add_block(const T* keys, const T* values, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      float* k = widen(keys + j * dim);
      for (int64_t g = 0; g < group; ++g) {
        const float* query = q.data() + g * dim;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < dim; ++d) sum += query[d] * k[d];
        scores[g * block_size + j] = sum;
      }
    }
    for (int64_t g = 0; g < group; ++g) {
      float shrink = weigh(scores.data() + g * block_size, first, last, peak[g], total[g]);
      float* values = acc.data() + g * dim;
#pragma omp simd
      for (int64_t d = 0; d < dim; ++d) values[d] *= shrink;
    }
    for (int64_t j = first; j < last; ++j) {
      float* v = widen(values + j * dim);
      for (int64_t g = 0; g < group; ++g) {
        float weight = scores[g * block_size + j];
        float* sum = acc.data() + g * dim;
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) sum[d] += weight * v[d];
      }
    }
  }

  void finish(T* out, int64_t head_stride) {
    for (int64_t g = 0; g < group; ++g) {
      float inverse = 1.0f / total[g];
      for (int64_t d = 0; d < dim; ++d)
        out[g * head_stride + d] = native::from_float<T>(acc[g * dim + d] * inverse);
    }
  }

 private:
  float* widen(const T* source) {
    float* target = row.data();
#pragma omp simd
    for (int64_t d = 0; d < dim; ++d) target[d] = native::to_float(source[d]);
    return target;
  }
};

template <class T>
inline void fetch_ahead(const T* data, int64_t num_elements) {
  const char* bytes = (const char*)data;
  for (int64_t i = 0; i < num_elements * int64_t(sizeof(T)); i += 64) __builtin_prefetch(bytes + i);
}

struct Arguments {
  const void* q;
  int64_t q_token_stride, q_head_stride;
  const void* cache;
  int64_t block_stride;
  const int32_t* block_tables;
  int64_t table_stride;
  const int32_t* context_lens;
  void* out;
  int64_t sequences, kv_heads, group, block_size, dim, window;
  float scale;
};

template <class T, class Task>
void attend(const Arguments& a) {
  int64_t tasks = a.sequences * a.kv_heads, work = 0;
  for (int64_t s = 0; s < a.sequences; ++s) work += a.context_lens[s];
  work *= a.kv_heads * a.group * a.dim;
  int64_t head_elements = a.block_size * a.dim;
#pragma omp parallel if (tasks > 1 && native::worth_threads(work / 4))
  {
    Task task(a.group, a.dim, a.block_size, a.scale);
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < tasks; ++t) {
      int64_t s = t / a.kv_heads, head = t % a.kv_heads;
      int64_t end = a.context_lens[s];
      int64_t begin = a.window > 0 ? std::max<int64_t>(0, end - a.window) : 0;
      int64_t first_head = head * a.group;
      task.start((const T*)a.q + s * a.q_token_stride + first_head * a.q_head_stride,
                 a.q_head_stride);
      auto keys_of = [&](int64_t b) {
        return (const T*)a.cache + a.block_tables[s * a.table_stride + b] * a.block_stride +
               head * head_elements;
      };
      for (int64_t b = begin / a.block_size; b * a.block_size < end; ++b) {
        const T* keys = keys_of(b);
        int64_t base = b * a.block_size;
        if (base + a.block_size < end) {
          // Blocks lie far apart: the processor cannot guess the next one.
          fetch_ahead(keys_of(b + 1), head_elements);
          fetch_ahead(keys_of(b + 1) + a.kv_heads * head_elements, head_elements);
        }
        task.add_block(keys, keys + a.kv_heads * head_elements, std::max<int64_t>(0, begin - base),
                       std::min(a.block_size, end - base));
      }
      task.finish((T*)a.out + (s * a.kv_heads * a.group + first_head) * a.dim, a.dim);
    }
  }
}

template <class T, int D>
void attend_fixed(const Arguments& a) {
  if (a.group == 1) return attend<T, FixedTask<T, D, 1>>(a);
  if (a.group == 2) return attend<T, FixedTask<T, D, 2>>(a);
  if (a.group == 3) return attend<T, FixedTask<T, D, 3>>(a);
  if (a.group == 4) return attend<T, FixedTask<T, D, 4>>(a);
  if (a.group == 7) return attend<T, FixedTask<T, D, 7>>(a);
  if (a.group == 8) return attend<T, FixedTask<T, D, 8>>(a);
  attend<T, AnyTask<T>>(a);
}

}  // namespace

extern "C" void tandem_paged_attention_decode(
    int64_t dtype, const void* q, int64_t q_token_stride, int64_t q_head_stride, const void* cache,
    int64_t block_stride, const int32_t* block_tables, int64_t table_stride,
    const int32_t* context_lens, void* out, int64_t sequences, int64_t kv_heads, int64_t group,
    int64_t block_size, int64_t dim, int64_t window, float scale) {
  Arguments a{q,        q_token_stride, q_head_stride, cache,    block_stride, block_tables,
              table_stride, context_lens,   out,           sequences, kv_heads,     group,
              block_size,   dim,            window,        scale};
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    if constexpr (!std::is_same_v<T, native::Float16>) {
      if (dim == 64 && block_size <= kMaxBlockSize) return attend_fixed<T, 64>(a);
      if (dim == 128 && block_size <= kMaxBlockSize) return attend_fixed<T, 128>(a);
    }
    attend<T, AnyTask<T>>(a);
  });
}
