"""Whether this server takes requests: the single answer for `/ready`, admission and shutdown.

The engine knows what each model is doing; this adds whether the server as a whole is draining. A
drain starts once and never ends, except with the process.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engine.contract.status import ModelStatus, Phase

_WORST_FIRST = (
    Phase.FAILED,
    Phase.STOPPED,
    Phase.DRAINING,
    Phase.RESTARTING,
    Phase.STARTING,
    Phase.DOWNLOADING,
    Phase.LOADING,
    Phase.WARMING_UP,
    Phase.READY,
)


@dataclass(frozen=True, slots=True)
class Readiness:
    """The server's phase, and the progress within it where it is known."""

    phase: Phase
    progress: float | None = None

    @property
    def serving(self) -> bool:
        return self.phase is Phase.READY


class Lifecycle:
    """Whether the server drains. Event loop only, except for what signal handlers call:
    `begin_drain` and `cut_drain_short`."""

    def __init__(
        self,
        drain_timeout_s: float,
        *,
        require_all: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.drain_timeout_s = drain_timeout_s
        self._require_all = require_all
        self._clock = clock
        self._drain_deadline: float | None = None
        self.cut_short = False
        """Set if the drain is cut short: the server ends without finishing anything."""

    @property
    def draining(self) -> bool:
        return self._drain_deadline is not None

    def begin_drain(self) -> None:
        """Refuse new requests from now on; running ones have `drain_timeout_s`. Idempotent."""
        if self._drain_deadline is None:
            self._drain_deadline = self._clock() + self.drain_timeout_s

    def cut_drain_short(self) -> None:
        """End the drain now and break off running requests."""
        self.begin_drain()
        self.cut_short = True

    def remaining_drain_s(self) -> float:
        """Seconds that running requests may still take; before a drain, the whole time-out."""
        if self._drain_deadline is None:
            return self.drain_timeout_s
        return 0.0 if self.cut_short else max(0.0, self._drain_deadline - self._clock())

    def readiness(self, statuses: Sequence[ModelStatus]) -> Readiness:
        """One phase for all models: that of the one furthest from serving.

        Models that failed to load count only if all models are required, or if no others are left:
        waiting would not bring them. A model that is loaded or unloaded while others serve does not
        count: the server continues as before. One that sleeps or wakes takes requests.
        """
        if self.draining:
            return Readiness(Phase.DRAINING)
        statuses = [replace(s, phase=Phase.READY) if s.is_asleep else s for s in statuses]
        staying = [s for s in statuses if s.phase is not Phase.DRAINING]
        settled = [s for s in staying if not s.joining]
        loadable = [s for s in settled if s.phase is not Phase.FAILED]
        counted = settled if self._require_all else loadable
        counted = counted or [s for s in staying if s.joining] or settled
        if not counted:
            return Readiness(Phase.STOPPED)
        worst = min(counted, key=lambda status: _WORST_FIRST.index(status.phase))
        return Readiness(worst.phase, worst.progress)
