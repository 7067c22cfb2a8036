// What `kernels/cpp/pieces.h` promises, tried out; prints what it does not keep.
#include <sys/resource.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "pieces.h"

namespace {

using native::Ranges;

int num_failures = 0;

void expect(bool holds, const char* what, int64_t a = 0, int64_t b = 0, int64_t c = 0) {
  if (holds) return;
  ++num_failures;
  std::printf("%s: %ld %ld %ld\n", what, long(a), long(b), long(c));
}

void each_piece_is_done_once(uint32_t seed) {
  std::mt19937 random(seed);
  for (int call = 0; call < 3000; ++call) {
    int64_t count = random() % 40, threads = 1 + random() % 9;
    std::vector<std::atomic<int>> done(count);
    native::for_pieces(count, threads, [&](int64_t piece) { ++done[piece]; });
    for (auto& times : done) expect(times == 1, "a piece was not done once", count, threads, times);
  }
}

void pieces_are_seen_when_it_returns() {
  for (int64_t call = 0; call < 3000; ++call) {
    std::vector<int64_t> results(64);
    native::for_pieces(64, 4, [&](int64_t piece) { results[piece] = call + piece; });
    for (int64_t i = 0; i < 64; ++i) expect(results[i] == call + i, "not written", call, i);
  }
}

void two_callers_do_not_disturb_each_other() {
  auto call = [] { each_piece_is_done_once(std::random_device{}()); };
  std::thread other(call);
  call();
  other.join();
}

void pieces_may_have_pieces() {
  std::atomic<int> done{0};
  native::for_pieces(8, 3, [&](int64_t) { native::for_pieces(8, 3, [&](int64_t) { ++done; }); });
  expect(done == 64, "pieces of pieces", done);
}

void sleeping_helpers_wake_up() {
  for (int call = 0; call < 20; ++call) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> inside{0};
    auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    // Ends only when two threads are at it at the same time.
    native::share_pieces(2, 2, [&](native::Pieces&) {
      ++inside;
      while (inside < 2 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    });
    expect(inside == 2, "a helper slept on", call);
  }
}

bool threads_can_start() try {
  std::thread([] {}).join();
  return true;
} catch (const std::system_error&) {
  return false;
}

// Of a new process: it has no helpers yet, and gets none.
void without_threads_the_caller_does_it_all() {
  if (pid_t child = fork()) {
    int status = 0;
    waitpid(child, &status, 0);
    return expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "needs threads", status);
  }
  rlimit one{1, 1};
  // The limit does not hold for root.
  if (getuid() == 0 && setuid(65534) != 0) _exit(0);
  if (setrlimit(RLIMIT_NPROC, &one) != 0 || threads_can_start()) _exit(0);
  int64_t done = 0;
  for (int call = 0; call < 100; ++call) native::for_pieces(9, 4, [&](int64_t) { ++done; });
  _exit(done == 900 ? 0 : 1);
}

// In a child process there are no helpers: they cannot come, and nobody must wait for them.
void helpers_that_do_not_come_are_not_waited_for() {
  if (pid_t child = fork()) {
    int status = 0;
    waitpid(child, &status, 0);
    return expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "waited in vain", status);
  }
  alarm(60);
  int64_t done = 0;
  for (int call = 0; call < 100; ++call) native::for_pieces(9, 4, [&](int64_t) { ++done; });
  _exit(done == 900 ? 0 : 1);
}

void ranges_cover_all_units(uint32_t seed) {
  std::mt19937 random(seed);
  for (int i = 0; i < 20000; ++i) {
    int64_t units = random() % 300, grain = 1 + random() % 8, threads = 1 + random() % 70;
    Ranges ranges(units, random() % (1 << 24), grain, threads);
    int64_t at = 0;
    for (int64_t r = 0; r < ranges.count(); ++r) {
      expect(ranges.first(r) == at && ranges.first(r + 1) > at, "ranges", units, grain, threads);
      at = ranges.first(r + 1);
    }
    expect(at == units, "ranges end", units, grain, threads);
  }
}

void each_share_is_done_once(uint32_t seed) {
  std::mt19937 random(seed);
  for (int call = 0; call < 3000; ++call) {
    int64_t units = random() % 300, grain = 1 + random() % 8, threads = 1 + random() % 9;
    int64_t times = 1 + random() % 3;
    Ranges ranges(units, random() % (1 << 24), grain, threads);
    std::vector<std::atomic<int>> done(times * units);
    native::for_shares(ranges, times, [&](int64_t time, int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) ++done[time * units + i];
    });
    for (auto& one : done) expect(one == 1, "a share was not done once", units, grain, threads);
  }
}

void threads_go_through_neighbours() {
  Ranges ranges(64, 1 << 24, 1, 1);
  int64_t at = 0;
  native::for_shares(ranges, 1, [&](int64_t, int64_t first, int64_t last) {
    expect(first == at, "not in order", first, at);
    at = last;
  });
  Ranges two(1003, 1 << 24, 4, 2);
  for (int64_t share = 0; share < 2; ++share)
    for (int64_t i = 1; i + 1 < two.count(share); ++i)
      expect(two.range(share, i) == two.range(share, i - 1) + 1, "no neighbours", share, i);
}

}  // namespace

int main(int, char** arguments) {
  uint32_t seed = uint32_t(std::atoi(arguments[1]));
  without_threads_the_caller_does_it_all();
  each_piece_is_done_once(seed);
  pieces_are_seen_when_it_returns();
  two_callers_do_not_disturb_each_other();
  pieces_may_have_pieces();
  sleeping_helpers_wake_up();
  helpers_that_do_not_come_are_not_waited_for();
  ranges_cover_all_units(seed);
  each_share_is_done_once(seed);
  threads_go_through_neighbours();
  return num_failures ? 1 : 0;
}
