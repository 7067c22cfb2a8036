// Mixtures of experts: choices sorted by expert, products with each expert's weights, sums of results.
// compile with -ffp-contract=off
#include <algorithm>
#include <vector>

#include "experts.h"
#include "pieces.h"

namespace native::experts {
namespace {

float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

// Marks the experts outside the best `top_groups` of `groups` as taken. A group is as good as its
// largest key, or as the sum of its two largest if `counts_two`.
void close_groups(const float* keys, int64_t experts, int64_t groups, int64_t top_groups,
                  bool counts_two, char* taken) {
  int64_t size = experts / groups;
  std::vector<float> sums(groups);
  for (int64_t g = 0; g < groups; ++g) {
    float first = -INFINITY, second = -INFINITY;
    for (int64_t e = g * size; e < (g + 1) * size; ++e) {
      second = std::max(second, std::min(first, keys[e]));
      first = std::max(first, keys[e]);
    }
    sums[g] = counts_two ? first + second : first;
  }
  std::fill_n(taken, experts, true);
  for (int64_t rank = 0; rank < top_groups; ++rank) {
    int64_t best = -1;
    for (int64_t g = 0; g < groups; ++g)
      if (taken[g * size] && (best < 0 || sums[g] > sums[best])) best = g;
    std::fill_n(taken + best * size, size, false);
  }
}

// Chooses the best `top_k` of `experts` for one token, the first of equal ones, with their shares
// of the softmax or their sigmoids. With a bias, the largest sums of it and the sigmoids are best.
void choose(const float* logits, int64_t experts, int64_t top_k, bool normalised, bool sigmoids,
            const float* bias, int64_t groups, int64_t top_groups, float* weights,
            int64_t* chosen) {
  std::vector<char> taken(experts);
  std::vector<float> sums(bias ? experts : 0);
  for (size_t e = 0; e < sums.size(); ++e) sums[e] = sigmoid(logits[e]) + bias[e];
  const float* keys = bias ? sums.data() : logits;
  if (top_groups < groups) close_groups(keys, experts, groups, top_groups, bias, taken.data());
  for (int64_t rank = 0; rank < top_k; ++rank) {
    // For any logits, including NaN, these are `top_k` different experts.
    int64_t best = -1;
    for (int64_t e = 0; e < experts; ++e)
      if (!taken[e] && (best < 0 || keys[e] > keys[best])) best = e;
    taken[best] = true;
    chosen[rank] = best;
  }
  float most = logits[chosen[0]], sum = 0;
  for (int64_t e = 0; e < experts && !sigmoids; ++e) sum += std::exp(logits[e] - most);
  for (int64_t rank = 0; rank < top_k; ++rank) {
    float logit = logits[chosen[rank]];
    weights[rank] = sigmoids ? sigmoid(logit) : std::exp(logit - most) / sum;
  }
  if (!normalised) return;
  float share = 0;
  for (int64_t rank = 0; rank < top_k; ++rank) share += weights[rank];
  share = std::max(share, 1e-20f);  // The sum of sigmoids may be 0.
  for (int64_t rank = 0; rank < top_k; ++rank) weights[rank] /= share;
}

template <class T>
void add_up(const T* answers, const float* weights, const int64_t* places, int64_t top_k,
            int64_t size, float* total, T* out) {
  for (int64_t rank = 0; rank < top_k; ++rank) {
    const T* answer = answers + places[rank] * size;
    float weight = weights[rank];
    if (rank == 0)
      for (int64_t i = 0; i < size; ++i) total[i] = to_float(answer[i]) * weight;
    else
      for (int64_t i = 0; i < size; ++i) total[i] += to_float(answer[i]) * weight;
  }
  for (int64_t i = 0; i < size; ++i) out[i] = from_float<T>(total[i]);
}

}  // namespace
}  // namespace native::experts

extern "C" void tandem_route_experts(const float* logits, int64_t stride, int64_t tokens,
                                     int64_t experts, int64_t top_k, int64_t normalised,
                                     int64_t sigmoids, const float* bias, int64_t groups,
                                     int64_t top_groups, float* weights, int64_t* places,
                                     int64_t* rows, int64_t* starts) {
  using namespace native;
  // Until pairs are sorted, places hold the experts' numbers.
  for_ranges(tokens, tokens * experts * top_k, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      experts::choose(logits + t * stride, experts, top_k, normalised, sigmoids, bias,
                      groups, top_groups, weights + t * top_k, places + t * top_k);
  });
  std::fill(starts, starts + experts + 1, 0);
  for (int64_t i = 0; i < tokens * top_k; ++i) ++starts[places[i] + 1];
  for (int64_t e = 0; e < experts; ++e) starts[e + 1] += starts[e];
  std::vector<int64_t> next(starts, starts + experts);
  for (int64_t i = 0; i < tokens * top_k; ++i) {
    int64_t place = next[places[i]]++;
    rows[place] = i / top_k;
    places[i] = place;
  }
}

extern "C" void tandem_linear_experts_packed(int64_t dtype, const void* x, int64_t x_stride,
                                             const int64_t* rows, const int64_t* starts,
                                             const void* const* weights, const float* bias,
                                             int64_t experts, int64_t inputs, int64_t outputs,
                                             char* out) {
  using namespace native::experts;
  int64_t size = dtype == native::kFloat32 ? 4 : 2;
  Rows of_x{(const char*)x, x_stride, rows, inputs, size};
  for_experts(starts, experts, of_x, [&](const Share& one) {
    tandem_linear_packed(dtype, one.x, one.x_stride, weights[one.expert],
                         bias_of(bias, one, outputs), out + one.first * outputs * size, one.rows,
                         inputs, (outputs + 15) / 16, outputs, false);
  });
}

extern "C" void tandem_linear_experts_panels(int64_t dtype, const void* x, int64_t x_stride,
                                             const int64_t* rows, const int64_t* starts,
                                             const void* const* weights, const float* bias,
                                             int64_t experts, int64_t blocks, int64_t bits,
                                             int64_t group, int64_t scale_dtype, int64_t has_min,
                                             int64_t offset, int64_t meaning,
                                             int64_t int8_activations, int64_t outputs, char* out,
                                             int64_t size) {
  using namespace native::experts;
  Rows of_x{(const char*)x, x_stride, rows, blocks * 32, size};
  for_experts(starts, experts, of_x, [&](const Share& one) {
    tandem_linear_panels(dtype, one.x, one.x_stride, one.rows, blocks, weights[one.expert], bits,
                         group, scale_dtype, has_min, offset, meaning, int8_activations,
                         bias_of(bias, one, outputs), false, out + one.first * outputs * size,
                         outputs);
  });
}

extern "C" void tandem_sum_experts(int64_t dtype, const void* answers, const float* weights,
                                   const int64_t* places, int64_t tokens, int64_t top_k,
                                   int64_t size, void* out) {
  using namespace native;
  with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    for_ranges(tokens, tokens * top_k * size, [&](int64_t first, int64_t last) {
      std::vector<float> total(size);
      for (int64_t t = first; t < last; ++t)
        experts::add_up((const T*)answers, weights + t * top_k, places + t * top_k, top_k, size,
                        total.data(), (T*)out + t * size);
    });
  });
}
