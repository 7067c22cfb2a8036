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

// D is the head dimension when it is known at compile time, else 0.
template <class T, int D>
struct Task {
  int64_t group, dim_, block_size;
  float scale;
  std::vector<float> q, acc, scores, row, peak, total;

  Task(int64_t group, int64_t dim, int64_t block_size, float scale)
      : group(group), dim_(dim), block_size(block_size), scale(scale), q(group * dim),
        acc(group * dim), scores(group * block_size), row(dim), peak(group), total(group) {}

  int64_t dim() const { return D ? D : dim_; }

  void start(const T* query, int64_t head_stride) {
    for (int64_t g = 0; g < group; ++g)
      for (int64_t d = 0; d < dim(); ++d)
        q[g * dim() + d] = native::to_float(query[g * head_stride + d]) * scale;
    std::fill(acc.begin(), acc.end(), 0.0f);
    std::fill(peak.begin(), peak.end(), kMasked);
    std::fill(total.begin(), total.end(), 0.0f);
  }

  // Keys first .. last - 1 of one block.
  void add_block(const T* keys, const T* values, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      float* k = widen(keys + j * dim());
      for (int64_t g = 0; g < group; ++g) {
        const float* query = q.data() + g * dim();
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < dim(); ++d) sum += query[d] * k[d];
        scores[g * block_size + j] = sum;
      }
    }
    for (int64_t g = 0; g < group; ++g) weigh(g, first, last);
    for (int64_t j = first; j < last; ++j) {
      float* v = widen(values + j * dim());
      for (int64_t g = 0; g < group; ++g) {
        float weight = scores[g * block_size + j];
        float* sum = acc.data() + g * dim();
#pragma omp simd
        for (int64_t d = 0; d < dim(); ++d) sum[d] += weight * v[d];
      }
    }
  }

  void finish(T* out, int64_t head_stride) {
    for (int64_t g = 0; g < group; ++g) {
      float inverse = 1.0f / total[g];
      for (int64_t d = 0; d < dim(); ++d)
        out[g * head_stride + d] = native::from_float<T>(acc[g * dim() + d] * inverse);
    }
  }

 private:
  float* widen(const T* source) {
    float* target = row.data();
#pragma omp simd
    for (int64_t d = 0; d < dim(); ++d) target[d] = native::to_float(source[d]);
    return target;
  }

  // Scores of one block become weights; what was summed so far is rescaled to the new maximum.
  void weigh(int64_t g, int64_t first, int64_t last) {
    float* score = scores.data() + g * block_size;
    float highest = peak[g];
    for (int64_t j = first; j < last; ++j) highest = std::max(highest, score[j]);
    float shrink = peak[g] == kMasked ? 0.0f : native::exp_nonpositive(peak[g] - highest);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = first; j < last; ++j) {
      score[j] = native::exp_nonpositive(score[j] - highest);
      sum += score[j];
    }
    peak[g] = highest;
    total[g] = total[g] * shrink + sum;
    float* values = acc.data() + g * dim();
#pragma omp simd
    for (int64_t d = 0; d < dim(); ++d) values[d] *= shrink;
  }
};

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

template <class T, int D>
void attend(const Arguments& a) {
  int64_t tasks = a.sequences * a.kv_heads, work = 0;
  for (int64_t s = 0; s < a.sequences; ++s) work += a.context_lens[s];
  work *= a.kv_heads * a.group * a.dim;
  int64_t head_elements = a.block_size * a.dim;
#pragma omp parallel if (tasks > 1 && native::worth_threads(work / 4))
  {
    Task<T, D> task(a.group, a.dim, a.block_size, a.scale);
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < tasks; ++t) {
      int64_t s = t / a.kv_heads, head = t % a.kv_heads;
      int64_t end = a.context_lens[s];
      int64_t begin = a.window > 0 ? std::max<int64_t>(0, end - a.window) : 0;
      int64_t first_head = head * a.group;
      task.start((const T*)a.q + s * a.q_token_stride + first_head * a.q_head_stride,
                 a.q_head_stride);
      for (int64_t b = begin / a.block_size; b * a.block_size < end; ++b) {
        const T* keys = (const T*)a.cache + a.block_tables[s * a.table_stride + b] * a.block_stride +
                        head * head_elements;
        int64_t base = b * a.block_size;
        task.add_block(keys, keys + a.kv_heads * head_elements, std::max<int64_t>(0, begin - base),
                       std::min(a.block_size, end - base));
      }
      task.finish((T*)a.out + (s * a.kv_heads * a.group + first_head) * a.dim, a.dim);
    }
  }
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
    if (dim == 64) return attend<T, 64>(a);
    if (dim == 128) return attend<T, 128>(a);
    attend<T, 0>(a);
  });
}
