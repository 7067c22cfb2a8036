"""One run of a worker: its process, its socket and its signs of life.

Carries messages without knowing their meaning; `engine.worker.supervisor` knows it and starts the
next run.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

import zmq
import zmq.asyncio

from engine.processes.environment import environment_with
from engine.processes.pulse import Pulse, PulseReader
from engine.worker import messages
from engine.worker.socket_folder import new_socket, remove_socket

_LAST_WORDS_S = 0.3

Describe = Callable[[str, int], messages.WorkerSpec]
"""Makes a worker's spec from the socket's address and the descriptor for pulses."""


class WorkerProcess:
    """A worker that is started once and read to its end. Its owner must call `end` in any case."""

    def __init__(self) -> None:
        self._address = new_socket()
        self._context = zmq.asyncio.Context()
        self._pulses = PulseReader()
        self._socket: zmq.asyncio.Socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._is_unwanted = False

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.returncode is None

    async def start(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        stderr: int | None,
        describe: Describe,
    ) -> None:
        """Start the process, with these environment variables set, and send it its spec."""
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.linger = 0
        self._socket.bind(self._address)
        # Standard input stays open: its end tells the worker that the server is gone. The worker
        # makes a process group of its own, so that the processes it starts can be ended with it.
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=environment_with(variables),
            pass_fds=(self._pulses.write_fd,),
        )
        assert self._process.stdin is not None
        spec = messages.encode(describe(self._address, self._pulses.write_fd))
        self._process.stdin.write(len(spec).to_bytes(4, "little") + spec)
        self._pulses.let_go()
        if self._is_unwanted:
            self.kill()

    def send(self, message: messages.ToWorker) -> None:
        """Send a message; to one that has ended it goes nowhere."""
        self.send_frames(messages.frames_of(message))

    def send_frames(self, frames: list[bytes]) -> None:
        """Send the frames of a message, in which pictures are not copied."""
        if self._socket is not None:
            # The high-water mark is off, so the send cannot wait and its future is done at once.
            self._socket.send_multipart(frames, copy=False)

    def pulse(self) -> Pulse | None:
        """The newest sign of life, if one has come since the last call."""
        return self._pulses.read()

    async def received(self) -> AsyncGenerator[messages.FromWorker, None]:
        """Yield the worker's messages until it has ended, including the last ones."""
        assert self._process is not None and self._socket is not None
        ended = asyncio.create_task(self._process.wait())
        is_connected = False
        try:
            while True:
                message = asyncio.ensure_future(self._socket.recv_multipart())
                await asyncio.wait({ended, message}, return_when=asyncio.FIRST_COMPLETED)
                if not message.done():
                    message.cancel()
                    break
                if not is_connected:  # the socket's name is not needed any more, nor left behind
                    remove_socket(self._address)
                    is_connected = True
                yield messages.decode_from_worker(*message.result())
            # What a worker said just before its end is the reason of it.
            with contextlib.suppress(zmq.Again):
                while True:
                    frames = await self._socket.recv_multipart(flags=zmq.NOBLOCK)
                    yield messages.decode_from_worker(*frames)
        finally:
            ended.cancel()

    async def wait(self, timeout_s: float) -> None:
        """Return when the process has ended or the time is over."""
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), timeout_s)

    def kill(self) -> None:
        """End the process, even if it is only being started."""
        self._is_unwanted = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def kill_with_last_words(self) -> None:
        """End the process after its log has shown where its threads are."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGUSR1)
                await asyncio.sleep(_LAST_WORDS_S)
        self.kill()

    async def end(self) -> int | None:
        """End the process and all processes that it started, and close what belongs to it.

        Returns:
            The exit code, or the negative signal; None if there was no process.
        """
        self._pulses.close()
        try:
            return await self._reap()
        finally:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            self._context.term()
            remove_socket(self._address)

    async def _reap(self) -> int | None:
        process = self._process
        if process is None:
            return None
        self.kill()
        code = await process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # processes that it started, such as compilers
        return code
