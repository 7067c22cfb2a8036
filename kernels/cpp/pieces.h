// Work that threads take piece by piece.
//
// At the end of a loop OpenMP waits for every thread of its team, even for one that had nothing to
// do because another process uses its core. Here the caller works, too, and waits only for threads
// that hold a piece; late threads find nothing left. A piece's result must not depend on the thread
// that takes it, nor on the number of threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#include "native.h"
#include "sleepers.h"

namespace native {

// The pieces of one call that no thread has taken yet.
class Pieces {
 public:
  explicit Pieces(int64_t count) : count_(count) {}

  // Whether there is another piece; `piece` is then its number.
  bool take(int64_t& piece) {
    piece = next_.fetch_add(1, std::memory_order_relaxed);
    return piece < count_;
  }

 private:
  const int64_t count_;
  std::atomic<int64_t> next_{0};
};

// A number that threads wait for: they spin for a while and then sleep.
class Signal {
 public:
  uint32_t get() const { return value_.load(); }
  void set(uint32_t value) { value_.store(value); }
  void wake(int64_t threads) {
    if (num_asleep_.load() > 0) sleepers_.wake(value_, threads);
  }
  std::atomic<uint32_t>& value() { return value_; }

  // Returns when `done(value)`; code that changes the value calls `wake`.
  template <class Done>
  void wait(Done done) {
    if (spin(done)) return;
    num_asleep_.fetch_add(1);
    for (uint32_t now = get(); !done(now); now = get()) sleepers_.sleep(value_, now);
    num_asleep_.fetch_sub(1);
  }

 private:
  // Longer than the gaps between a step's operations: waking a sleeping core takes as long as some
  // operations do.
  static constexpr std::chrono::microseconds kSpin{400};

  template <class Done>
  bool spin(Done done) const {
    auto end = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 32; ++i) {
        if (done(get())) return true;
        pause();
      }
    } while (std::chrono::steady_clock::now() < end);
    return false;
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::atomic<uint32_t> value_{0};
  std::atomic<int32_t> num_asleep_{0};
  Sleepers sleepers_;
};

// The helper threads of all operations. One call at a time uses them; they are started when first
// needed and live as long as the process.
class Crew {
 public:
  using Work = void (*)(void* context, Pieces& pieces);

  // One crew for all sources that are linked together. Never destroyed, since helpers may wait in
  // it.
  static Crew& get() {
    static Crew* crew = new Crew;
    return *crew;
  }

  // Lets `threads` threads, including the caller, call `work` once each, or fewer if some are late
  // or another call uses them. Returns when no thread is in `work` any more.
  void run(int64_t threads, Pieces& pieces, Work work, void* context) {
    if (threads <= 1 || busy_.test_and_set(std::memory_order_acquire)) return work(context, pieces);
    int64_t seats = std::min<int64_t>(threads - 1, kMostHelpers);
    start_helpers(seats);
    pieces_ = &pieces, work_ = work, context_ = context;
    places_.set(uint32_t(seats) << 16);
    calls_.set(calls_.get() + 1);
    calls_.wake(seats);
    work(context, pieces);
    // No thread joins from here on.
    if (places_.value().fetch_and(kInside) & kInside)
      places_.wait([](uint32_t places) { return places == 0; });
    busy_.clear(std::memory_order_release);
  }

 private:
  static constexpr int64_t kMostHelpers = 1023;
  static constexpr uint32_t kInside = 0xffff, kSeat = 1 << 16;

  // Where the system allows no more threads, there are fewer.
  void start_helpers(int64_t wanted) try {
    for (; num_helpers_ < wanted; ++num_helpers_) std::thread([this] { help(); }).detach();
  } catch (const std::system_error&) {
  }

  void help() {
    for (uint32_t seen = 0;;) {
      calls_.wait([seen](uint32_t calls) { return calls != seen; });
      seen = calls_.get();
      if (!join()) continue;
      work_(context_, *pieces_);
      // After the last helper has left, the call may be gone.
      if (places_.value().fetch_sub(1) == 1) places_.wake(1);
    }
  }

  // Takes a seat of the present call, if there is one.
  bool join() {
    uint32_t places = places_.get();
    while (places >= kSeat)
      if (places_.value().compare_exchange_weak(places, places - kSeat + 1)) return true;
    return false;
  }

  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  alignas(64) Signal calls_;   // how many calls there were
  alignas(64) Signal places_;  // upper half: free seats; lower half: helpers in `work_`
  Pieces* pieces_ = nullptr;
  Work work_ = nullptr;
  void* context_ = nullptr;
  int64_t num_helpers_ = 0;
};

// Calls `work(pieces)` on up to `threads` threads, which divide the `count` pieces among them, or
// not at all if there are none. For work that keeps state from piece to piece.
template <class Work>
void share_pieces(int64_t count, int64_t threads, Work work) {
  if (count == 0) return;
  Pieces pieces(count);
  Crew::get().run(
      std::min(threads, count), pieces,
      [](void* context, Pieces& pieces) { (*(Work*)context)(pieces); }, &work);
}

// Calls `work(piece)` for each of `count` pieces, on up to `threads` threads.
template <class Work>
void for_pieces(int64_t count, int64_t threads, Work work) {
  share_pieces(count, threads, [&](Pieces& pieces) {
    for (int64_t piece; pieces.take(piece);) work(piece);
  });
}

// Neighbouring units of work in ranges for `threads` to take, the same number for each: several, so
// that a late thread delays little, but none that is too small to be worth taking. All ranges but
// the last ones are a multiple of `grain` long; the rest is divided evenly, so that all threads end
// together. A share is what one thread takes if none is late: neighbours and one of the last ranges.
class Ranges {
 public:
  // `elements`: those of the whole work, as in `worth_threads`.
  Ranges(int64_t units, int64_t elements, int64_t grain, int64_t threads)
      : units_(units), threads_(std::max<int64_t>(1, std::min(threads, units))) {
    constexpr int64_t kSmallest = 1 << 14, kPerThread = 8;
    int64_t wanted = threads_ * std::clamp<int64_t>(elements / kSmallest / threads_, 1, kPerThread);
    length_ = std::max(grain, (units + wanted - 1) / wanted / grain * grain);
    num_full_ = units / length_ / threads_ * threads_;
  }

  int64_t count() const { return num_full_ + num_short(); }
  int64_t shares() const { return threads_; }
  int64_t count(int64_t share) const { return num_full_ / threads_ + (share < num_short()); }
  // The number of a share's range.
  int64_t range(int64_t share, int64_t i) const {
    int64_t neighbours = num_full_ / threads_;
    return i < neighbours ? share * neighbours + i : num_full_ + share;
  }
  int64_t first(int64_t range) const {
    if (range <= num_full_) return range * length_;
    return num_full_ * length_ + (range - num_full_) * left_over() / num_short();
  }

 private:
  int64_t left_over() const { return units_ - num_full_ * length_; }
  int64_t num_short() const { return std::min(threads_, left_over()); }

  int64_t units_, threads_, length_, num_full_;
};

// Calls `work(time, first, last)` for all ranges, `times` times. Each thread goes through a share, in
// order, so that what it fetches ahead is for itself; then it helps with what others have not begun.
template <class Work>
void for_shares(const Ranges& ranges, int64_t times, Work work) {
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
  };
  std::vector<Share> shares(ranges.shares());
  auto finish = [&](int64_t share) {
    int64_t count = ranges.count(share);
    auto& next = shares[share].next;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count * times;) {
      int64_t range = ranges.range(share, i % count);
      work(i / count, ranges.first(range), ranges.first(range + 1));
    }
  };
  share_pieces(ranges.shares(), ranges.shares(), [&](Pieces& left) {
    for (int64_t share; left.take(share);) finish(share);
    for (int64_t share = 0; share < ranges.shares(); ++share) finish(share);
  });
}

// Calls `work(first, last)` for ranges that are units 0 .. units - 1 together, on threads if the
// number of elements is worth it.
template <class Work>
void for_ranges(int64_t units, int64_t elements, Work work) {
  Ranges ranges(units, elements, 1, worth_threads(elements) ? num_threads() : 1);
  for_shares(ranges, 1, [&](int64_t, int64_t first, int64_t last) { work(first, last); });
}

}  // namespace native
