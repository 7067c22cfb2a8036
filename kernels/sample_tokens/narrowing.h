// A row whose steps have an order of their own: `ordered.narrowed`.
#pragma once
#include <algorithm>
#include <cfloat>

#include "near_peak.h"
#include "steps.h"

namespace {

// Finds the tokens that are left, and the factor of their values before the draw. The first step
// that leaves tokens out reads the whole row; from then on there are candidates.
class Narrowing {
 public:
  // x: [size] fp32, finite or -infinity; peak: the greatest of them, finite. May be changed.
  Narrowing(const Knobs& knobs, float* x, int64_t size, float peak, Scratch& scratch)
      : knobs_(knobs),
        x_(x),
        size_(size),
        peak_(peak),
        scratch_(scratch),
        some_(scratch.candidates(size)),
        late_(knobs) {
    int64_t possible = 0;
#pragma omp simd reduction(+ : possible)
    for (int64_t i = 0; i < size; ++i) possible += x[i] > -kInfinity ? 1 : 0;
    num_left_ = possible;
  }

  void take(Step step) {
    switch (step) {
      case Step::end: return;
      case Step::temperature: return find_scale();
      case Step::top_n_sigma: return keep_near();
      case Step::top_k: return keep_top();
      case Step::top_p: return keep_nucleus();
      case Step::min_p: return keep_likely();
      default:
        weigh([](int64_t) { return 1; });
        late_.leave(step, some_, x_, weighing_, knobs_);
    }
  }

  const Candidates& left() {
    if (is_whole_) collect_from(-FLT_MAX);
    return some_;
  }
  float scale() const { return scale_; }

 private:
  void find_scale() {
    scale_ = float(knobs_.inverse_temperature);
    if (!(knobs_.dynatemp_range > 0.0)) return;
    float* values = gather();
    int32_t exponent = unit_exponent(num_left());
    scale_ = dynamic_scale(knobs_, values, num_gathered(), peak_, exponent);
  }

  void keep_near() {
    if (!(knobs_.top_n_sigma > 0.0)) return;
    float* values = gather();
    int32_t num_bits = unit_exponent(num_left()) / 2;
    keep_near_peak(values, num_gathered(), peak_, knobs_.top_n_sigma, num_bits);
    if (is_whole_) collect_from(-FLT_MAX);
    else some_.keep_if([&](int64_t i) { return values[i] > -kInfinity; });
  }

  // Tokens below the last of the top ones go before masses are computed, which are those of the
  // remaining tokens.
  void keep_top() {
    int64_t k = knobs_.top_k;
    if (k > 0 && k < num_left()) {
      float* values = gather();
      float bound = std::max(-FLT_MAX, top_k_bound(values, num_gathered(), k, scratch_.maxima));
      if (is_whole_) collect_from(bound);
      else some_.keep_if([&](int64_t i) { return values[i] >= bound; });
      for (int64_t i = 0; i < some_.size; ++i) some_.keys[i] = order_key(x_[some_.ids[i]]);
      some_.cut(k, false, true);
    }
    weigh([](int64_t) { return 1; });
    if (k > 0) some_.cut(k, false, false);
  }

  void keep_nucleus() {
    int64_t num = num_left();
    int64_t total = weigh([&](int64_t mass) { return nucleus_bound(knobs_.top_p, mass, num); });
    if (knobs_.top_p < 1.0) some_.cut(needed_mass(knobs_.top_p, total), true, false);
  }

  void keep_likely() {
    int64_t bound = min_p_bound(knobs_.min_p, unit_exponent(num_left()));
    weigh([=](int64_t) { return bound; });
  }

  // Finds the masses of the remaining tokens, among these. Tokens below a bound, of at least 1, go:
  // the bound may depend on the mass of all, which is returned.
  template <class Function>
  int64_t weigh(Function bound_of) {
    float* values = gather();
    weighing_ = {peak_, scale_, unit_exponent(num_left())};
    int64_t total = 0;
    bool was_whole = is_whole_;
    if (was_whole) {
      float* weights = scratch_.weights.data();
      for (int64_t i = 0; i < size_; ++i) {
        weights[i] = weighing_.weight(values[i]);
        total += int64_t(weights[i]);
      }
      some_.size = collect(weights, size_, at_least(bound_of(total)), some_.ids);
      is_whole_ = false;
      values = gather();
    }
    for (int64_t i = 0; i < some_.size; ++i) some_.keys[i] = order_key(values[i]);
    for (int64_t i = 0; i < some_.size; ++i)
      some_.masses[i] = int64_t(weighing_.weight(values[i]));
    if (was_whole) return total;
    total = some_.total();
    int64_t bound = bound_of(total);
    some_.keep_if([&](int64_t i) { return some_.masses[i] >= bound; });
    return total;
  }

  void collect_from(float bound) {
    some_.size = collect(x_, size_, bound, some_.ids);
    is_whole_ = false;
  }

  int64_t num_left() const { return is_whole_ ? num_left_ : some_.size; }

  // The values of the candidates, in scratch memory, or those of the whole row. Updates `peak_`, as
  // XTC may have left the likeliest token out.
  float* gather() {
    if (is_whole_) return x_;
    float* values = scratch_.weights.data();
    peak_ = -kInfinity;
    for (int64_t i = 0; i < some_.size; ++i) {
      values[i] = x_[some_.ids[i]];
      peak_ = std::max(peak_, values[i]);
    }
    return values;
  }
  int64_t num_gathered() const { return is_whole_ ? size_ : some_.size; }

  const Knobs& knobs_;
  float* x_;
  int64_t size_;
  float peak_;
  Scratch& scratch_;
  Candidates some_;
  LateSteps late_;
  bool is_whole_ = true;
  int64_t num_left_ = 0;  // tokens left of the whole row
  Weighing weighing_{};
  float scale_ = 1.0f;
};

}  // namespace
