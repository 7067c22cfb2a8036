// `noise.py`: the exponential race of the tokens, in which few are judged exactly.
#pragma once
#include "noise.h"

namespace {

// The token whose exponential time, divided by its weight, is least.
class Race {
 public:
  explicit Race(const Knobs& knobs) : knobs_(knobs) {}

  // Judges a token of integer-valued weight whose first word is known.
  void enter(int64_t id, float weight, uint32_t first) {
    float rate = weight * reciprocal(exponential(first, first < 256 ? word(id, 1) : 0));
    if (rate > best_ || (rate == best_ && id < winner_)) best_ = rate, winner_ = id;
  }

  // The same, looking the word up.
  void enter(int64_t id, float weight) { enter(id, weight, word(id, 0)); }

  // An exponential is never less than its v, and v never less than this by more than rounding.
  bool may_win(float weight, uint32_t first) const { return weight > best_ * bound(first); }
  static float bound(uint32_t first) { return float(first) * (0.9999f * 0x1p-32f); }

  float best() const { return best_; }
  int64_t winner() const { return winner_; }

 private:
  uint32_t word(int64_t id, uint32_t more) const {
    uint32_t blocks[kLanes];
    for (int j = 0; j < kLanes; ++j) blocks[j] = block_of(id);
    return philox(knobs_, blocks, more).of[word_of(id)][0];
  }

  const Knobs& knobs_;
  float best_ = 0.0f;
  int64_t winner_ = 0;
};

}  // namespace
