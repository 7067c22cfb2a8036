"""Decides how many threads to compute with, from how long they wait for a core.

Threads that compute together wait for each other: one that another process keeps from its core
holds up all. Beside as many busy processes as there are cores, two threads are slower than one.
"""

WINDOW_S = 0.1
"""Computing time that a judgement is based on; a scheduler's time slices are a few milliseconds."""
LASTING_S = 3.5 * WINDOW_S
"""Computing time with too much waiting after which there are fewer."""
CALM = 0.1
"""Threads that wait on average, up to which more of them may be tried."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.3, 10.0
"""Between tries of more threads. It doubles each time that one fails."""


class ThreadCount:
    """As many threads as allowed, fewer while others keep the cores busy. Pure logic: it is told
    the time and what the threads waited.

    Fewer when too many wait for some windows in a row: many requests that arrive together keep
    the server process busy for two or three, and a thread less would last longer than that. More
    only as a try, which the next window judges: at first one more, and twice as many each time
    that it went well. How much waiting is too much depends on what a thread less would cost: of
    two, half the speed; of many, little.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = most
        self._busy_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._try_at_s = 0.0
        self._more = 1
        self._crowded_s = 0.0
        """Computing time in which too many have waited without a break."""
        self._before: int | None = None
        """How many there were before the try that is under way."""

    @property
    def lasting(self) -> int:
        """Without those that are only being tried."""
        return self._before if self._before is not None else self.now

    def is_due(self, busy_s: float) -> bool:
        """Whether, after so many more seconds of computing, it is time to `judge`."""
        self._busy_s += busy_s
        return self._busy_s >= WINDOW_S

    def start_window(self) -> None:
        """Forget the computing since the last judgement."""
        self._busy_s = 0.0

    def judge(self, time_s: float, waited_s: float) -> int:
        """How many threads to use from now on.

        Args:
            time_s: a clock that never goes back.
            waited_s: what all threads together have waited since the last judgement.
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
    """Threads that wait on average, above which one less is faster."""
    return max(1 / threads, CALM)
