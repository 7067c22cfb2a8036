// The gated delta rule, row after row: a head's state stays in the cache of the core that has it.
#include <vector>

#include "pieces.h"

namespace {

constexpr float kEps = 1e-6f;  // EPS of reference.py

struct Shape {
  int64_t k_heads, v_heads, k_dim, v_dim, stride, gate_stride;
  int64_t decays;  // of a head: one, or one for each row of its state
  int64_t values() const { return 2 * k_heads * k_dim; }  // where values begin in a row
};

// Returns a vector divided by its length, times `scale`.
template <class T>
void normalise(const T* x, float* out, int64_t size, float scale) {
  float sum = 0;
  for (int64_t i = 0; i < size; ++i) out[i] = native::to_float(x[i]);
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += out[i] * out[i];
  float factor = scale / std::sqrt(sum + kEps);
  for (int64_t i = 0; i < size; ++i) out[i] *= factor;
}

inline float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// One value head of one sequence. `state` is [k_dim, v_dim], `rate` is -exp(a_log).
template <class T>
void run_head(const Shape& shape, const T* qkv, const T* gates, float rate, const float* dt_bias,
              float* state, T* out, int64_t rows, int64_t head, std::vector<float>& scratch) {
  int64_t kd = shape.k_dim, vd = shape.v_dim;
  int64_t key_head = head / (shape.v_heads / shape.k_heads);
  scratch.resize(3 * kd + 2 * vd);
  float *q = scratch.data(), *k = q + kd, *fade = k + kd, *change = fade + kd, *sum = change + vd;
  float scale = 1.0f / std::sqrt(float(kd));
  for (int64_t t = 0; t < rows; ++t) {
    const T* row = qkv + t * shape.stride;
    normalise(row + key_head * kd, q, kd, scale);
    normalise(row + (shape.k_heads + key_head) * kd, k, kd, 1.0f);
    const T *gate = gates + t * shape.gate_stride, *a = gate + shape.v_heads + head * shape.decays;
    for (int64_t i = 0; i < shape.decays; ++i)
      fade[i] = std::exp(rate * softplus(native::to_float(a[i]) + dt_bias[i]));
    std::fill(fade + shape.decays, fade + kd, fade[0]);
    float share = native::sigmoid(native::to_float(gate[head]));
    std::fill(sum, sum + vd, 0.0f);
    for (int64_t i = 0; i < kd; ++i) {
      float* s = state + i * vd;
      for (int64_t j = 0; j < vd; ++j) {
        s[j] *= fade[i];
        sum[j] += s[j] * k[i];
      }
    }
    const T* value = row + shape.values() + head * vd;
    for (int64_t j = 0; j < vd; ++j) change[j] = share * (native::to_float(value[j]) - sum[j]);
    std::fill(sum, sum + vd, 0.0f);
    for (int64_t i = 0; i < kd; ++i) {
      float* s = state + i * vd;
      for (int64_t j = 0; j < vd; ++j) {
        s[j] += k[i] * change[j];
        sum[j] += s[j] * q[i];
      }
    }
    T* y = out + (t * shape.v_heads + head) * vd;
    for (int64_t j = 0; j < vd; ++j) y[j] = native::from_float<T>(sum[j]);
  }
}

}  // namespace

extern "C" void tandem_gated_delta(int64_t dtype, const void* qkv, int64_t stride,
                                   const void* gates, int64_t gate_stride, const float* a_log,
                                   const float* dt_bias, int64_t decays, float* states,
                                   const int32_t* offsets, const int32_t* reads,
                                   const int32_t* writes, void* out, int64_t sequences,
                                   int64_t k_heads, int64_t v_heads, int64_t k_dim,
                                   int64_t v_dim) {
  Shape shape{k_heads, v_heads, k_dim, v_dim, stride, gate_stride, decays};
  int64_t head_size = k_dim * v_dim;
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    int64_t elements = (offsets[sequences] + sequences) * v_heads * head_size;
    int64_t threads = native::worth_threads(elements) ? native::num_threads() : 1;
    native::share_pieces(sequences * v_heads, threads, [&](native::Pieces& pieces) {
      std::vector<float> scratch;
      for (int64_t piece; pieces.take(piece);) {
        int64_t b = piece / v_heads, head = piece % v_heads, first = offsets[b];
        if (first == offsets[b + 1]) continue;
        float* state = states + (writes[b] * v_heads + head) * head_size;
        if (reads[b] < 0) {
          std::fill(state, state + head_size, 0.0f);
        } else if (reads[b] != writes[b]) {
          const float* from = states + (reads[b] * v_heads + head) * head_size;
          std::copy(from, from + head_size, state);
        }
        run_head(shape, (const T*)qkv + first * stride, (const T*)gates + first * gate_stride,
                 -std::exp(a_log[head]), dt_bias + head * decays, state,
                 (T*)out + first * v_heads * v_dim, offsets[b + 1] - first, head, scratch);
      }
    });
  });
}
