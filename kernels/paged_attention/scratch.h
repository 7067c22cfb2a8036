// Memory for intermediate results.
#pragma once
#include <vector>

#include "task.h"

namespace {

// Memory of this thread, kept from call to call; 64-byte aligned.
class Scratch {
 public:
  explicit Scratch(int64_t floats) {
    thread_local std::vector<float> memory;
    if (int64_t(memory.size()) < floats + 16) memory.resize(floats + 16);
    memory_ = (float*)round_up((int64_t)memory.data(), 64);
  }

  template <class E>
  E* take(int64_t count) {
    E* taken = (E*)memory_;
    memory_ += round_up(divide_up(count * sizeof(E), 4), 16);
    return taken;
  }

 private:
  float* memory_;
};

}  // namespace
