"""Decides which models sleep, so that more can be served than fit into memory.

A loading worker that gets no memory asks here for room. The models that have been idle longest
then sleep, as many as it takes in bytes, and a request for one of them wakes it again. What waits
for room looks again every few hundredths of a second.
"""

import asyncio
import math
import time
from collections.abc import Mapping
from contextvars import Context

import structlog

from engine.contract.request import Info
from engine.errors import ModelUnloading
from engine.runtime.memory import MemoryArbiter
from engine.worker.supervisor import RELOAD_PAUSE_S, Supervisor

_LOOK_AGAIN_S = 0.05
_IDLE_PERIOD_S = 0.25

log = structlog.get_logger(__name__)


class Sleepers:
    """Puts the models of one client to sleep and wakes them. Event loop only.

    - Only idle models are put to sleep, those that were used longest ago first, and pinned ones
      never. Models are put to sleep only if that makes enough room.
    - A model that is loaded without being asked for, at the start or after its worker died, takes
      room only from models that were used less recently, or else sleeps itself.
    - A model that is being loaded gives way to one whose load began earlier; so two of them never
      wait for each other.
    - A model wakes at most once in `RELOAD_PAUSE_S`. When one has waited that long for models that
      are never idle, new requests for those wait behind it.
    """

    def __init__(self, supervisors: Mapping[str, Supervisor], arbiter: MemoryArbiter) -> None:
        self._supervisors = supervisors
        self._arbiter = arbiter
        self._wakes: dict[str, asyncio.Task[None]] = {}
        self._idling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to put models to sleep that nobody uses."""
        self._idling = asyncio.create_task(self._watch_idle(), context=Context())

    def stop(self) -> None:
        """Wake nothing any more."""
        for task in [*self._wakes.values(), *filter(None, [self._idling])]:
            task.cancel()

    def want(self, supervisor: Supervisor) -> "asyncio.Task[None]":
        """Wake a model. The result is there when it serves, or when nobody waits for it any
        more."""
        name = supervisor.spec.name
        task = self._wakes.get(name)
        if task is None or task.done():
            task = asyncio.create_task(self._wake(supervisor), context=Context())
            self._wakes[name] = task
            task.add_done_callback(lambda done: self._forget(name, done))
        return task

    async def awake(self, supervisor: Supervisor) -> Info:
        """The model once it serves.

        Raises:
            ModelNotReady: it has not woken within its time-out, or could not be loaded.
            ModelUnloading: it was unloaded meanwhile.
        """
        with supervisor.awaited():
            try:
                async with asyncio.timeout(supervisor.config.wake_timeout_s):
                    if supervisor.is_asleep:
                        await asyncio.shield(self.want(supervisor))
                    else:
                        await supervisor.wait_until_settled()
            except TimeoutError:
                raise supervisor.not_woken() from None
        if supervisor.is_leaving:
            raise ModelUnloading(f"model {supervisor.spec.name!r} is being unloaded", param="model")
        if supervisor.is_asleep or supervisor.info is None:
            raise supervisor.not_woken()
        return supervisor.info

    async def rest(self, supervisor: Supervisor) -> None:
        """Put a model to sleep once it has finished what it does."""
        if supervisor.is_asleep or supervisor.has_ended:
            return
        supervisor.hold_back()
        while not (supervisor.is_idle or supervisor.is_asleep or supervisor.has_ended):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_AGAIN_S)
        if not supervisor.is_leaving:
            await asyncio.shield(supervisor.fall_asleep())

    async def make_room(self, supervisor: Supervisor, device: str, num_bytes: int) -> bool | None:
        """Have others sleep until a model can get that much memory. False: it never can. None: not
        now, and nobody waits for it."""
        held_back: list[Supervisor] = []
        began_s = time.monotonic()
        try:
            while not supervisor.is_leaving:
                missing = num_bytes - self._arbiter.free(device)
                if missing <= 0:
                    return True
                if num_bytes > self._attainable(supervisor, device):
                    return False
                if not await self._free(supervisor, device, missing):
                    if not supervisor.is_wanted:
                        return None
                    if not held_back and time.monotonic() - began_s > RELOAD_PAUSE_S:
                        held_back = self._hold_back(device, missing)
                    await asyncio.sleep(_LOOK_AGAIN_S)
            return None
        finally:
            for other in held_back:
                if not other.is_asleep:
                    other.let_go()

    async def _wake(self, supervisor: Supervisor) -> None:
        supervisor.begun_s = time.monotonic()
        while supervisor.is_wanted and supervisor.is_asleep and not supervisor.is_leaving:
            if not (supervisor.has_ended and supervisor.is_rested):
                await asyncio.sleep(_LOOK_AGAIN_S)
                continue
            # Before a process is started, which takes memory of its own.
            for device, num_bytes in supervisor.planned.items():
                await self.make_room(supervisor, device, num_bytes)
            if supervisor.is_wanted and not supervisor.is_leaving:
                supervisor.wake()
                await supervisor.wait_until_settled()
                if supervisor.status.failure is not None:
                    return

    def _attainable(self, supervisor: Supervisor, device: str) -> int:
        """The bytes that a model can have besides its own once all others sleep that may."""
        kept = sum(
            self._arbiter.held(device, name)
            for name, other in self._supervisors.items()
            if other.pinned or other is supervisor
        )
        return self._arbiter.budget(device) - kept

    async def _free(self, supervisor: Supervisor, device: str, missing: int) -> bool:
        """Have models sleep if that frees enough memory. Returns whether it does."""
        going: list[Supervisor] = []
        for other in sorted(self._supervisors.values(), key=lambda one: one.used_s):
            num_bytes = self._arbiter.held(device, other.spec.name)
            if missing > 0 and num_bytes and self._gives_way(other, supervisor):
                missing -= num_bytes
                going.append(other)
        if missing > 0:
            return False
        for other in list(going):  # a small model need not go if a large one goes
            num_bytes = self._arbiter.held(device, other.spec.name)
            if missing + num_bytes <= 0:
                missing += num_bytes
                going.remove(other)
        for other in going:
            log.info("model makes room", model=other.spec.name, wanted=supervisor.spec.name)
        await asyncio.gather(*(asyncio.shield(other.fall_asleep()) for other in going))
        return True

    @staticmethod
    def _gives_way(other: Supervisor, supervisor: Supervisor) -> bool:
        if other is supervisor or other.pinned or other.is_leaving:
            return False
        if other.is_loading:
            return other.begun_s > (-math.inf if supervisor.pinned else supervisor.begun_s)
        is_first = supervisor.pinned or supervisor.is_wanted
        return other.is_idle and (is_first or other.used_s < supervisor.used_s)

    def _hold_back(self, device: str, missing: int) -> list[Supervisor]:
        """Keep new requests from busy models, those that have been awake longest first, until they
        can make enough room."""
        chosen: list[Supervisor] = []
        for other in sorted(self._supervisors.values(), key=lambda one: one.begun_s):
            num_bytes = self._arbiter.held(device, other.spec.name)
            may = other.is_ready and other.is_rested and not (other.pinned or other.is_leaving)
            if missing > 0 and num_bytes and may:
                missing -= num_bytes
                other.hold_back()
                chosen.append(other)
        return chosen

    async def _watch_idle(self) -> None:
        while True:
            await asyncio.sleep(_IDLE_PERIOD_S)
            for supervisor in list(self._supervisors.values()):
                status = supervisor.status
                limit_s = status.sleep_after_s
                if supervisor.is_idle and limit_s is not None and status.idle_s >= limit_s:
                    supervisor.fall_asleep()

    def _forget(self, name: str, task: "asyncio.Task[None]") -> None:
        if self._wakes.get(name) is task:
            del self._wakes[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a model cannot be woken", model=name, exc_info=error)
