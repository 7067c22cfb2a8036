// Threads that sleep until a number changes. With TANDEM_WITHOUT_FUTEX, what other systems than Linux
// use can be tested on Linux.
#pragma once
#include <atomic>
#include <cstdint>

#if defined(__linux__) && !defined(TANDEM_WITHOUT_FUTEX)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#else
#include <condition_variable>
#include <mutex>
#endif

namespace native {

#if defined(__linux__) && !defined(TANDEM_WITHOUT_FUTEX)

class Sleepers {
 public:
  // Returns when `wake` is called, at once if `value` is not `now`, or earlier than either.
  void sleep(std::atomic<uint32_t>& value, uint32_t now) { futex(value, FUTEX_WAIT_PRIVATE, now); }

  // Wakes this many threads or more. Call it after changing `value`.
  void wake(std::atomic<uint32_t>& value, int64_t threads) {
    futex(value, FUTEX_WAKE_PRIVATE, uint32_t(std::min<int64_t>(threads, INT_MAX)));
  }

 private:
  static void futex(std::atomic<uint32_t>& value, int operation, uint32_t argument) {
    static_assert(sizeof value == 4, "the kernel looks at 32 bits");
    syscall(SYS_futex, &value, operation, argument, nullptr, nullptr, 0);
  }
};

#else

class Sleepers {
 public:
  void sleep(std::atomic<uint32_t>& value, uint32_t now) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (value.load() == now) woken_.wait(lock);
  }

  void wake(std::atomic<uint32_t>&, int64_t) {
    // Once this has the lock, whoever saw the old number waits.
    { std::lock_guard<std::mutex> lock(mutex_); }
    woken_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable woken_;
};

#endif

}  // namespace native
