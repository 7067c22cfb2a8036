// A row that is not greedy: the tokens that are kept, and the one that wins.
#pragma once
#include <algorithm>
#include <cmath>

#include "candidates.h"
#include "near_peak.h"
#include "peak.h"
#include "race.h"
#include "steps.h"
#include "weights.h"

namespace {

class Row {
 public:
  Row(const Knobs& knobs, const float* x, int64_t size, const Peak& peak, Scratch& scratch)
      : knobs_(knobs), x_(x), size_(size), peak_(peak), scratch_(scratch), race_(knobs), late_(knobs) {
    int32_t exponent = unit_exponent(size);
    weighing_ = {peak.value, float(knobs.inverse_temperature), exponent};
    if (knobs.dynatemp_range > 0.0)
      weighing_.inverse_temperature = dynamic_scale(knobs, x, size, peak.value, exponent);
    least_ = min_p_bound(knobs.min_p, exponent);
  }

  // `masses` are those of the token and of all kept tokens.
  void draw(int64_t& token_id, int64_t& num_kept, int64_t* masses) {
    has_top_k_ = knobs_.top_k > 0 && knobs_.top_k < size_;
    bool tells = knobs_.least_probability > 0.0;
    if (!has_top_k_ && knobs_.top_p >= 1.0 && !tells && !late_.has_others_than(Step::xtc)) {
      if (late_.has(Step::xtc)) find_top_choices();
      num_kept = race_all();
    } else {
      Candidates kept = select();
      num_kept = kept.size;
      race_some(kept);
      if (tells) tell(kept, masses);
    }
    token_id = race_.winner();
  }

 private:
  // Judges all tokens of sufficient weight, without the top choices except the last.
  int64_t race_all() {
    int64_t first = last_choice_ < 0 ? peak_.first : last_choice_;
    race_.enter(first, float(int64_t(weighing_.weight(x_[first]))));
    float least = at_least(least_);
    int64_t kept = last_choice_ < 0 ? 0 : 1;
    for (int64_t start = 0; start < size_; start += kBlock) {
      int length = int(std::min<int64_t>(kBlock, size_ - start));
      float padded[kBlock], weights[kBlock];
      const float* x = x_ + start;
      if (length < kBlock) {
        for (int j = 0; j < kBlock; ++j) padded[j] = j < length ? x[j] : -kInfinity;
        x = padded;
      }
      int32_t fine = 0;
      for (int j = 0; j < kBlock; ++j) {
        float weight = weighing_.weight(x[j]);
        bool stays = (weight >= least) & (weight < choice_);
        weights[j] = stays ? weight : 0.0f;
        fine += stays ? 1 : 0;
      }
      if (!fine) continue;
      kept += fine;
      uint32_t blocks[kLanes];
      for (int j = 0; j < kLanes; ++j) blocks[j] = uint32_t(start / kBlock * kLanes + j);
      Words words = philox(knobs_, blocks, 0);
      float best = race_.best();
      int32_t any = 0;
      for (int word = 0; word < 4; ++word)
        for (int j = 0; j < kLanes; ++j)
          any |= weights[word * kLanes + j] > best * Race::bound(words.of[word][j]) ? 1 : 0;
      if (!any) continue;
      for (int j = 0; j < kBlock; ++j) {
        uint32_t first = words.of[j / kLanes][j % kLanes];
        if (race_.may_win(weights[j], first))
          race_.enter(start + j, float(int64_t(weights[j])), first);
      }
    }
    return kept;
  }

  void race_some(const Candidates& kept) {
    for (int64_t start = 0; start < kept.size; start += kLanes) {
      int length = int(std::min<int64_t>(kLanes, kept.size - start));
      uint32_t blocks[kLanes] = {};
      for (int j = 0; j < length; ++j) blocks[j] = block_of(kept.ids[start + j]);
      Words words = philox(knobs_, blocks, 0);
      for (int j = 0; j < length; ++j) {
        int64_t id = kept.ids[start + j];
        uint32_t first = words.of[word_of(id)][j];
        float weight = float(kept.masses[start + j]);
        if (race_.may_win(weight, first)) race_.enter(id, weight, first);
      }
    }
  }

  void tell(const Candidates& kept, int64_t* masses) const {
    masses[1] = kept.total();
    for (int64_t i = 0; i < kept.size; ++i)
      if (kept.ids[i] == race_.winner()) masses[0] = kept.masses[i];
  }

  // See `reference.xtc`, for rows where no other step leaves out more than tokens of little weight.
  void find_top_choices() {
    Candidates some = scratch_.candidates(size_);
    float* weights = scratch_.weights.data();
    float least = at_least(least_);
    int64_t total = 0;
    for (int64_t i = 0; i < size_; ++i) {
      float weight = weighing_.weight(x_[i]);
      weights[i] = weight;
      total += weight >= least ? int64_t(weight) : 0;
    }
    float bound = std::max(least, at_least(needed_mass(knobs_.xtc_threshold, total)));
    some.size = collect(weights, size_, bound, some.ids);
    last_choice_ = last_choice(some.ids, some.size, x_, [](int64_t) { return true; });
    if (last_choice_ >= 0) choice_ = bound;
  }

  // Applies all steps that leave tokens out, one after the other.
  Candidates select() {
    Candidates some = scratch_.candidates(size_);
    int64_t total = -1;
    if (has_top_k_) {
      float bound = top_k_bound(x_, size_, knobs_.top_k, scratch_.maxima);
      some.size = collect(x_, size_, bound, some.ids);
    } else {
      total = collect_heavy(some);
    }
    float* values = scratch_.weights.data();
    for (int64_t i = 0; i < some.size; ++i) values[i] = x_[some.ids[i]];
    for (int64_t i = 0; i < some.size; ++i) some.keys[i] = order_key(values[i]);
    for (int64_t i = 0; i < some.size; ++i) some.masses[i] = int64_t(weighing_.weight(values[i]));
    if (has_top_k_) some.cut(knobs_.top_k, false, false);
    if (knobs_.top_p < 1.0)
      some.cut(needed_mass(knobs_.top_p, total < 0 ? some.total() : total), true, false);
    some.keep_if([&](int64_t i) { return some.masses[i] >= least_; });
    if (knobs_.least_probability > 0.0) {
      int64_t needed = needed_mass(knobs_.least_probability, some.total());
      int64_t bound = std::min(needed, int64_t(1) << weighing_.exponent);
      some.keep_if([&](int64_t i) { return some.masses[i] >= bound; });
    }
    late_.leave(some, x_, weighing_, knobs_);
    return some;
  }

  // Collects tokens that a nucleus may hold; returns the mass of all.
  int64_t collect_heavy(Candidates& some) {
    float* weights = scratch_.weights.data();
    int64_t total = 0;
    for (int64_t i = 0; i < size_; ++i) {
      weights[i] = weighing_.weight(x_[i]);
      total += int64_t(weights[i]);
    }
    float bound = at_least(nucleus_bound(knobs_.top_p, total, size_));
    some.size = collect(weights, size_, bound, some.ids);
    return total;
  }

  const Knobs& knobs_;
  const float* x_;
  int64_t size_;
  const Peak& peak_;
  Scratch& scratch_;
  Race race_;
  LateSteps late_;
  Weighing weighing_;
  int64_t least_;  // weight that min_p leaves
  bool has_top_k_ = false;
  float choice_ = kInfinity;  // weight of a top choice that is left out
  int64_t last_choice_ = -1;
};

}  // namespace
