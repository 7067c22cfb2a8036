"""Chooses the number of compute threads from the time that threads wait for a core.

Threads that compute together wait for each other, so one that another process keeps from its core
delays all. Beside as many busy processes as there are cores, two threads are slower than one.
"""

WINDOW_S = 0.1
"""Computing time on which a decision is based; a scheduler's time slices are a few milliseconds."""
LASTING_S = 3.5 * WINDOW_S
"""Computing time with too much waiting after which the number is reduced."""
CALM = 0.1
"""The average number of waiting threads up to which more threads may be tried."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.3, 10.0
"""Pauses between tries of more threads. The pause doubles each time that a try fails."""


class ThreadCount:
    """The number of threads: as many as allowed, fewer while others keep the cores busy. Pure
    logic: the caller passes the time and the waiting of the threads.

    The number falls when too many threads wait for several windows in a row: many requests that
    arrive together keep the server process busy for two or three windows, and a reduction would
    last longer than that. It rises only as a try, which the next window judges: first by one, then
    by twice as many after each success. The tolerated waiting depends on the cost of one thread
    less, which is half the speed with two threads and little with many.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = most
        self._busy_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._try_at_s = 0.0
        self._more = 1
        self._crowded_s = 0.0
        """Computing time in which too many threads have waited without a break."""
        self._before: int | None = None
        """The number of threads before the current try."""

    @property
    def lasting(self) -> int:
        """The number of threads without those that are only being tried."""
        return self._before if self._before is not None else self.now

    def is_due(self, busy_s: float) -> bool:
        """Add seconds of computing; return whether it is time to `judge`."""
        self._busy_s += busy_s
        return self._busy_s >= WINDOW_S

    def start_window(self) -> None:
        """Forget the computing since the last judgement."""
        self._busy_s = 0.0

    def judge(self, time_s: float, waited_s: float) -> int:
        """Return the number of threads to use from now on.

        Args:
            time_s: a clock that never goes back.
            waited_s: waiting time of all threads together since the last judgement.
        """
        waiting = waited_s / self._busy_s
        is_crowded = self.now > 1 and waiting > _too_many(self.now)
        self._crowded_s = self._crowded_s + self._busy_s if is_crowded else 0.0
        self._busy_s = 0.0
        before, self._before = self._before, None
        if self._crowded_s > LASTING_S or (is_crowded and before is not None):
            self._fall_back(time_s, before, waiting)
        elif self.now < self.most:
            self._consider_more(time_s, waiting, succeeded=before is not None)
        elif before is not None:
            self._pause_s, self._more = FIRST_PAUSE_S, 1
        return self.now

    def _fall_back(self, time_s: float, before: int | None, waiting: float) -> None:
        if before is not None:  # a try that failed
            self.now = before
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        else:
            self.now = max(1, self.now - max(1, round(waiting)))
        self._more = 1
        self._crowded_s = 0.0
        self._try_at_s = time_s + self._pause_s

    def _consider_more(self, time_s: float, waiting: float, *, succeeded: bool) -> None:
        if succeeded:
            self._more *= 2
            self._try_at_s = time_s
        if waiting > CALM:
            self._more = 1
            self._try_at_s = time_s + self._pause_s
        elif time_s >= self._try_at_s:
            self._before = self.now
            self.now = min(self.most, self.now + self._more)


def _too_many(threads: int) -> float:
    """Return the average number of waiting threads above which one thread less is faster."""
    return max(1 / threads, CALM)
