"""One model's sleep: whether it sleeps, who waits for it, and when it may sleep or wake.

A sleeping model is served as before, but its requests wait. First it dozes: its worker stays, and
its memory is in a file. When others need what the worker still holds, or nothing could be kept, it
has no worker.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from engine.contract.settings import EngineConfig
from engine.contract.status import ModelStatus, Phase
from engine.errors import ModelNotReady
from engine.worker.wake_queue import WakeQueue

RELOAD_PAUSE_S = 10.0
"""The least time between two loads of the same model after its first one, and the time for which
a model that has woken may work before others hold its requests back."""
DOZE_PAUSE_S = 1.0
"""The least time from a wake to the next wake from a doze, which takes much less work."""


class Slumber:
    """The sleep of one model. Event loop only.

    Args:
        on_late: called with a request that has waited too long.

    Attributes:
        pinned: whether the model never sleeps.
        keep_alive_s: the idle seconds after which it sleeps; below 0 is never.
        used_s, begun_s: when it last did something, and when its load began, on the monotonic
            clock. At the start both are below 0, in the order of the models.
        planned: the memory that it held on each device when it last began to serve.
        num_awaiting: how many wait for it without a request.
        queue: the requests that wait.
        is_asleep: whether requests wait for it to wake.
        is_dozing: whether it sleeps and its worker has stayed.
        holds_back: whether requests wait although it is awake.
        file_bytes: the size of the file that holds its memory.
    """

    def __init__(self, name: str, config: EngineConfig, on_late: Callable[[str], None]) -> None:
        self._name = name
        self._idle_limit_s = self.keep_alive_s = config.sleep_idle_seconds
        self._timeout_s = config.wake_timeout_s
        self.pinned = config.pinned
        self.used_s = self.begun_s = time.monotonic()
        self.planned: Mapping[str, int] = {}
        self.num_awaiting = 0
        self.queue = WakeQueue(on_late)
        self.is_asleep = self.is_dozing = self.holds_back = False
        self.file_bytes = 0
        self._woken_s: float | None = None
        self._loaded_s: float | None = None
        self._num_wakes = 0
        self._wake_time_s = 0.0

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for the model to wake."""
        return len(self.queue) > 0 or self.num_awaiting > 0

    @property
    def is_rested(self) -> bool:
        """Whether the last wake is long enough ago to hold requests back."""
        return _is_past(self._woken_s, RELOAD_PAUSE_S)

    @property
    def may_wake(self) -> bool:
        """Whether the last wake or load is long enough ago for the next."""
        if self.is_dozing:
            return _is_past(self._woken_s, DOZE_PAUSE_S)
        return _is_past(self._loaded_s, RELOAD_PAUSE_S)

    @property
    def delays(self) -> bool:
        """Whether new requests wait."""
        return self.is_asleep or self.holds_back

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Count as somebody who waits for the model."""
        self.num_awaiting += 1
        try:
            yield
        finally:
            self.num_awaiting -= 1

    def delay(self, request_id: str, submit: list[bytes]) -> None:
        """Have a request wait."""
        self.queue.add(request_id, submit, self._timeout_s)

    def begin(self) -> None:
        """Note that the model falls asleep."""
        self.is_asleep, self.holds_back = True, False
        self.keep_alive_s = self._idle_limit_s

    def stir(self) -> None:
        """Note that the model begins to wake."""
        self._woken_s = time.monotonic()
        if not self.is_dozing:
            self._loaded_s = self._woken_s

    def end(self, planned: Mapping[str, int]) -> None:
        """Note that the model serves, with that memory."""
        self.planned = planned
        if self.is_asleep and self._woken_s is not None:
            self.used_s = time.monotonic()
            self._num_wakes += 1
            self._wake_time_s += self.used_s - self._woken_s
        self.is_asleep = False

    def not_woken(self, status: ModelStatus) -> ModelNotReady:
        """The error for those who waited in vain for the model to wake."""
        reason = f"has not woken within {self._timeout_s:g} s; try again later"
        if status.failure is not None:
            reason = f"could not be woken: {status.failure.message}"
        error = ModelNotReady(f"model {self._name!r} sleeps and {reason}", param="model")
        error.retry_after_s = round(RELOAD_PAUSE_S)
        return error

    def shown_in(self, status: ModelStatus, *, is_idle: bool) -> ModelStatus:
        """The model's status with what is known here."""
        return replace(
            status,
            waking=self.is_asleep and status.phase is not Phase.SLEEPING,
            pinned=self.pinned,
            num_wakes=self._num_wakes,
            wake_time_s=self._wake_time_s,
            idle_s=time.monotonic() - self.used_s if is_idle else 0.0,
            sleep_after_s=None if self.pinned or self.keep_alive_s < 0 else self.keep_alive_s,
        )


def _is_past(at_s: float | None, pause_s: float) -> bool:
    """Whether a pause has passed since then, if it ever was."""
    return at_s is None or time.monotonic() - at_s >= pause_s
