"""Notices a worker that hangs: stopped by a signal, in a dead-lock, or in an endless step.

Three times are measured, each while its cause lasts:

- no pulse comes: the process is stopped, or none of its threads can run;
- requests wait, and the loop neither advances nor uses CPU time: it waits for something that never
  comes. A step that takes minutes does not count, as it uses CPU time of the loop's thread;
- requests wait, and no step has a result, however busy the loop is.

Time is added up from the server's own ticks, none of which counts for more than two. Time in which
the server itself was stopped or the machine slept is therefore not counted against a worker.
"""

import asyncio
from collections.abc import Callable

from engine.processes.pulse import PERIOD_S, Pulse

LOADING_PATIENCE_S = 300.0
"""The patience without a pulse until the model serves: importing or compiling may block all
threads."""


class Watchdog:
    """Watches one worker, from its start to its end.

    Args:
        worker_timeout_s: how long a process or a loop may be stuck.
        step_timeout_s: how long steps may have no result.
    """

    def __init__(self, worker_timeout_s: float, step_timeout_s: float) -> None:
        self.period_s = min(PERIOD_S, worker_timeout_s / 4)
        self._worker_timeout_s = worker_timeout_s
        self._step_timeout_s = step_timeout_s
        self._last = Pulse()
        self._silent_s = 0.0
        self._still_s = 0.0
        self._fruitless_s = 0.0

    async def watch(
        self, read: Callable[[], Pulse | None], state: Callable[[], tuple[bool, bool]]
    ) -> str:
        """Watch until there is a reason to end the worker, and return it.

        Args:
            read: returns the newest pulse since the last call.
            state: returns `is_ready` and `is_busy` of `tick`.
        """
        clock = asyncio.get_running_loop().time
        ticked_s, reason = clock(), None
        while reason is None:
            await asyncio.sleep(self.period_s)
            pulse, last_s, ticked_s = read(), ticked_s, clock()
            if pulse is not None:
                self.on_pulse(pulse)
            is_ready, is_busy = state()
            reason = self.tick(ticked_s - last_s, is_ready=is_ready, is_busy=is_busy)
        return reason

    def on_pulse(self, pulse: Pulse) -> None:
        """Take in a worker's sign of life."""
        self._silent_s = 0.0
        last, self._last = self._last, pulse
        if (pulse.num_turns, pulse.cpu_time_s) != (last.num_turns, last.cpu_time_s):
            self._still_s = 0.0
        if pulse.num_outcomes != last.num_outcomes:
            self._fruitless_s = 0.0

    def tick(self, elapsed_s: float, *, is_ready: bool, is_busy: bool) -> str | None:
        """Let time pass. Returns the reason to end the worker, if there is one.

        Args:
            elapsed_s: the time since the last tick, which should be `period_s`.
            is_ready: whether the model is loaded.
            is_busy: whether a request is unfinished.
        """
        passed_s = min(elapsed_s, 2 * self.period_s)
        self._silent_s += passed_s
        self._still_s = self._still_s + passed_s if is_busy else 0.0
        self._fruitless_s = self._fruitless_s + passed_s if is_busy else 0.0
        patience_s = self._worker_timeout_s
        if self._silent_s >= (patience_s if is_ready else max(patience_s, LOADING_PATIENCE_S)):
            return f"it gave no sign of life for {self._silent_s:.0f} s"
        if self._still_s >= patience_s:
            return f"its loop has been blocked for {self._still_s:.0f} s while requests wait"
        if self._fruitless_s >= self._step_timeout_s:
            return f"no step has ended for {self._fruitless_s:.0f} s while requests wait"
        return None
