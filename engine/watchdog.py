"""Notices a worker that has stopped: by a signal, in a dead-lock, or in a step without an end.

Three kinds of patience, each counted while its cause lasts:

- no pulse at all: the process is stopped, or no thread of it can run;
- requests wait, and the loop neither goes round nor uses any CPU time: it waits for something that
  does not come. A step that takes minutes is not meant, as the loop's thread takes part in it;
- requests wait, and no step brings anything, however busy the loop is.

Time is the server's own and waking: it is added up from ticks, none of which counts for more than
two. After the server itself was stopped, or the machine slept, nobody is judged by that time.
"""

from engine.pulse import PERIOD_S, Pulse

LOADING_PATIENCE_S = 300.0
"""Without a pulse until the model serves: importing or compiling may keep all threads waiting."""


class Watchdog:
    """Watches one worker, from its start to its end.

    Args:
        worker_timeout_s: patience with a process or a loop that stands still.
        step_timeout_s: patience with steps that bring nothing.
    """

    def __init__(self, worker_timeout_s: float, step_timeout_s: float) -> None:
        self.period_s = min(PERIOD_S, worker_timeout_s / 4)
        self._worker_timeout_s = worker_timeout_s
        self._step_timeout_s = step_timeout_s
        self._last = Pulse()
        self._silent_s = 0.0
        self._still_s = 0.0
        self._fruitless_s = 0.0

    def on_pulse(self, pulse: Pulse) -> None:
        """Take in a worker's sign of life."""
        self._silent_s = 0.0
        last, self._last = self._last, pulse
        if (pulse.num_turns, pulse.cpu_time_s) != (last.num_turns, last.cpu_time_s):
            self._still_s = 0.0
        if pulse.num_outcomes != last.num_outcomes:
            self._fruitless_s = 0.0

    def tick(self, elapsed_s: float, *, is_ready: bool, is_busy: bool) -> str | None:
        """Let time pass. Returns why the worker is to be ended, if it is.

        Args:
            elapsed_s: since the last tick, which was to be `period_s` ago.
            is_ready: the model is loaded.
            is_busy: the worker owes a request its end.
        """
        passed_s = min(elapsed_s, 2 * self.period_s)
        self._silent_s += passed_s
        self._still_s = self._still_s + passed_s if is_busy else 0.0
        self._fruitless_s = self._fruitless_s + passed_s if is_busy else 0.0
        patience_s = self._worker_timeout_s
        if self._silent_s >= (patience_s if is_ready else max(patience_s, LOADING_PATIENCE_S)):
            return f"it gave no sign of life for {self._silent_s:.0f} s"
        if self._still_s >= patience_s:
            return f"requests wait and its loop stands still since {self._still_s:.0f} s"
        if self._fruitless_s >= self._step_timeout_s:
            return f"requests wait and no step has ended for {self._fruitless_s:.0f} s"
        return None
