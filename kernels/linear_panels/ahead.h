// Panels that are needed next, fetched from memory bit by bit while others are multiplied: fetched all
// at once, they would take more places than a core has for lines that it waits for.
#pragma once
#include <algorithm>
#include <cstdint>

#include "native.h"

namespace native::panels {

class Ahead {
 public:
  // `count` times `bytes` bytes, `stride` from one to the next, in about `calls` calls of `fetch`.
  Ahead(const uint8_t* first, int64_t bytes, int64_t count, int64_t stride, int64_t calls)
      : at_(first), end_(first + bytes), bytes_(bytes), count_(count), stride_(stride) {
    calls = std::max<int64_t>(1, calls / count);  // for each
    step_ = ((bytes + kLine - 1) / kLine + calls - 1) / calls * kLine;
  }

  ALWAYS_INLINE void fetch() {
    if (count_ == 0) return;
    for (const uint8_t* to = at_ + step_; at_ < to; at_ += kLine) __builtin_prefetch(at_, 0, 2);
    if (at_ < end_) return;
    --count_;
    end_ += stride_;
    at_ = end_ - bytes_;
  }

 private:
  static constexpr int64_t kLine = 64;

  const uint8_t *at_, *end_;
  int64_t bytes_, count_, stride_, step_;
};

}  // namespace native::panels
