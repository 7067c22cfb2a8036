// Prefetching of memory that will be read soon.
#pragma once
#include "task.h"

namespace {

constexpr int kTurn = 4;  // Steps of a matrix product between two calls.

// Prefetches memory line by line during other work: a processor waits for few lines at a time, and
// that work would have to wait for a burst of them, too.
class Ahead {
 public:
  void clear() {
    count_ = next_ = lines_ = 0;
    at_ = end_ = nullptr;
  }

  void add(const char* from, int64_t size) {
    runs_[count_++] = {from, from + size};
    lines_ += divide_up(size, kLine);
  }

  // Sets how often `fetch` will be called.
  void divide(int64_t turns) { share_ = divide_up(lines_, turns); }

  void fetch() {
    for (int64_t i = 0; i < share_; ++i, at_ += kLine) {
      if (at_ >= end_) {
        if (next_ == count_) {
          share_ = 0;
          return;
        }
        at_ = runs_[next_].from;
        end_ = runs_[next_++].to;
      }
      __builtin_prefetch(at_, 0, 2);
    }
  }

 private:
  static constexpr int64_t kLine = 64;

  struct Run {
    const char *from, *to;
  };
  Run runs_[2 * kTile];  // Keys and values of one block each.
  int64_t count_ = 0, next_ = 0, lines_ = 0, share_ = 0;
  const char *at_ = nullptr, *end_ = nullptr;
};

}  // namespace
