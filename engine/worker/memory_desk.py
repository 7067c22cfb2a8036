"""Answers one model's workers that ask for memory."""

import asyncio
from collections.abc import Awaitable, Callable

from engine.contract.gpus import device_of_account
from engine.errors import Failure, InsufficientMemory
from engine.runtime.memory import MemoryArbiter
from engine.worker import messages


class MemoryDesk:
    """The memory of one model's workers. Event loop only.

    Args:
        name, device: the model's, as configured.
        send: sends a message to the running worker.
        make_room: called with a device and a number of bytes; has other models sleep until that
            much is free, and returns whether it will ever be. None: the model sleeps instead.
    """

    def __init__(
        self,
        name: str,
        device: str,
        arbiter: MemoryArbiter,
        send: Callable[[messages.ToWorker], None],
        make_room: Callable[[str, int], Awaitable[bool | None]],
    ) -> None:
        self._name = name
        self._device = device
        self._arbiter = arbiter
        self._send = send
        self._make_room = make_room
        self._waiting: asyncio.Task[None] | None = None

    def held(self) -> dict[str, int]:
        """The bytes that the model holds on each device."""
        return self._arbiter.held_by(self._name)

    def reserve(self, ask: messages.Reserve, *, may_wait: bool) -> None:
        """Answer a worker, now or, if it may wait, once others have made room for it."""
        device = device_of_account(ask.device, self._device)
        self._arbiter.ensure_budget(device, ask.capacity_bytes, ask.shared_bytes)
        try:
            self._arbiter.reserve(self._name, ask.id, device, ask.purpose, ask.num_bytes)
            self._send(messages.Granted(ask.id, self._arbiter.free(device, self._name)))
        except InsufficientMemory as error:
            if may_wait:
                self._waiting = asyncio.create_task(self._wait(ask, device))
            else:
                self._send(messages.Denied(ask.id, Failure.of(error)))

    async def _wait(self, ask: messages.Reserve, device: str) -> None:
        fits = await self._make_room(device, ask.num_bytes)
        if fits is not None:
            self.reserve(ask, may_wait=fits)

    def release(self, id: int) -> None:
        """Take back what a worker was granted."""
        self._arbiter.release(self._name, id)

    def release_all(self) -> None:
        """Take back everything after a worker's end."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._arbiter.release_all(self._name)

    def suspend(self, process_bytes: int) -> bool:
        """Count only the process of a worker that dozes. False: even that is too much."""
        return self._arbiter.suspend(self._name, "cpu", process_bytes)

    def resume(self) -> bool:
        """Count again what the worker had before. False: it is too much now."""
        return self._arbiter.resume(self._name)
