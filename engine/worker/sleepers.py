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
from engine.runtime.memory import PROCESS, MemoryArbiter
from engine.worker import slumber
from engine.worker.supervisor import Supervisor

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
    - Models that doze lose their workers first.
    - Replicas of one model make no room for each other.
    - A model is loaded at most once in `RELOAD_PAUSE_S`. When one has waited that long for models
      that are never idle, new requests for those wait behind it.
    - What a model needs to wake is set aside before its process starts, so no other takes it.
    """

    def __init__(
        self, supervisors: Mapping[str, Supervisor], arbiter: MemoryArbiter, file_bytes: int
    ) -> None:
        self._supervisors = supervisors
        self._arbiter = arbiter
        self._file_bytes = file_bytes
        self._wakes: dict[str, asyncio.Task[None]] = {}
        self._idling: asyncio.Task[None] | None = None

    @property
    def doze_bytes(self) -> int:
        """The largest file that the next model may keep its memory in while it sleeps."""
        dozing = [one.slumber for one in self._supervisors.values() if one.slumber.is_dozing]
        return self._file_bytes - sum(one.file_bytes for one in dozing)

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
        with supervisor.slumber.awaited():
            try:
                async with asyncio.timeout(supervisor.config.wake_timeout_s):
                    if supervisor.slumber.is_asleep:
                        await asyncio.shield(self.want(supervisor))
                    else:
                        await supervisor.wait_until_settled()
            except TimeoutError:
                raise supervisor.not_woken() from None
        if supervisor.is_leaving:
            raise ModelUnloading(f"model {supervisor.spec.name!r} is being unloaded", param="model")
        if supervisor.slumber.is_asleep or supervisor.info is None:
            raise supervisor.not_woken()
        return supervisor.info

    async def rest(self, supervisor: Supervisor, *, deep: bool) -> None:
        """Put a model to sleep once it has finished what it does."""
        own = supervisor.slumber
        if supervisor.has_ended or (own.is_asleep and not (deep and own.is_dozing)):
            return
        own.holds_back = not own.is_asleep
        while not (supervisor.is_idle or own.is_asleep or supervisor.has_ended):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_AGAIN_S)
        if not (supervisor.is_leaving or supervisor.has_ended):
            await asyncio.shield(supervisor.fall_asleep(deep=deep))

    async def make_room(self, supervisor: Supervisor, device: str, num_bytes: int) -> bool | None:
        """Have others sleep until a model can get that much memory. False: it never can. None: not
        now, and nobody waits for it."""
        held_back: list[Supervisor] = []
        began_s = time.monotonic()
        try:
            while not supervisor.is_leaving:
                missing = num_bytes - self._arbiter.free(device) - self._dozing(supervisor, device)
                if missing <= 0:
                    return True
                if num_bytes > self._attainable(supervisor, device):
                    return False
                if not await self._free(supervisor, device, missing):
                    if not supervisor.slumber.is_wanted:
                        return None
                    if not held_back and time.monotonic() - began_s > slumber.RELOAD_PAUSE_S:
                        held_back = self._hold_back(supervisor, device, missing)
                    await asyncio.sleep(_LOOK_AGAIN_S)
            return None
        finally:
            for other in held_back:
                if not other.slumber.is_asleep:
                    other.let_go()

    async def _wake(self, supervisor: Supervisor) -> None:
        own = supervisor.slumber
        own.begun_s = time.monotonic()
        while own.is_wanted and own.is_asleep and not supervisor.is_leaving:
            if not (own.may_wake and (own.is_dozing or supervisor.has_ended)):
                await asyncio.sleep(_LOOK_AGAIN_S)
                continue
            try:
                # Before a process is started, which takes memory of its own.
                for device, num_bytes in own.planned.items():
                    has_room = await self.make_room(supervisor, device, num_bytes)
                    if has_room and not own.is_dozing:
                        self._arbiter.set_aside(supervisor.spec.name, device, num_bytes)
                may_wake = own.is_dozing or supervisor.has_ended  # others may have ended its doze
                if may_wake and own.is_wanted and not supervisor.is_leaving:
                    supervisor.wake()
                    await supervisor.wait_until_settled()
                    if supervisor.status.failure is not None:
                        return
            finally:
                self._arbiter.end_aside(supervisor.spec.name)

    def _attainable(self, supervisor: Supervisor, device: str) -> int:
        """The bytes that a model can have besides its own once all others sleep that may."""
        kept = sum(
            self._arbiter.held(device, name)
            for name, other in self._supervisors.items()
            if other.slumber.pinned or _serve_together(other, supervisor)
        )
        return self._arbiter.lendable(device) - kept + self._dozing(supervisor, device)

    def _dozing(self, supervisor: Supervisor, device: str) -> int:
        """The bytes that a model holds only until it wakes."""
        name = supervisor.spec.name
        return self._arbiter.held(device, name) if supervisor.slumber.is_dozing else 0

    async def _free(self, supervisor: Supervisor, device: str, missing: int) -> bool:
        """Have models sleep if that frees enough memory. Returns whether it does."""
        going: list[Supervisor] = []
        for other in sorted(self._supervisors.values(), key=_use):
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
        staying = [other for other in going if not other.slumber.is_dozing]
        kept = sum(self._arbiter.held(device, other.spec.name, PROCESS) for other in staying)
        for other in going:
            log.info(
                "model put to sleep to make room",
                model=other.spec.name,
                wanted=supervisor.spec.name,
            )
        falling = [
            other.fall_asleep(deep=missing + kept > 0 or other.slumber.is_dozing) for other in going
        ]
        await asyncio.gather(*map(asyncio.shield, falling))
        return True

    @staticmethod
    def _gives_way(other: Supervisor, supervisor: Supervisor) -> bool:
        its, own = other.slumber, supervisor.slumber
        if _serve_together(other, supervisor) or its.pinned or other.is_leaving:
            return False
        if other.is_loading:
            return its.begun_s > (-math.inf if own.pinned else own.begun_s)
        is_first = own.pinned or own.is_wanted
        return its.is_dozing or (other.is_idle and (is_first or its.used_s < own.used_s))

    def _hold_back(self, supervisor: Supervisor, device: str, missing: int) -> list[Supervisor]:
        """Keep new requests from busy models, those that have been awake longest first, until they
        can make enough room."""
        chosen: list[Supervisor] = []
        for other in sorted(self._supervisors.values(), key=lambda one: one.slumber.begun_s):
            num_bytes = self._arbiter.held(device, other.spec.name)
            its = other.slumber
            may = other.is_ready and its.is_rested and not (its.pinned or other.is_leaving)
            may = may and not _serve_together(other, supervisor)
            if missing > 0 and num_bytes and may:
                missing -= num_bytes
                its.holds_back = True
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


def _serve_together(one: Supervisor, other: Supervisor) -> bool:
    """Whether they are the same, or replicas of one model."""
    return one.spec.served_as == other.spec.served_as


def _use(supervisor: Supervisor) -> tuple[bool, float]:
    """The order in which models lose their memory."""
    return not supervisor.slumber.is_dozing, supervisor.slumber.used_s
