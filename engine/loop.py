"""A worker process: loads one model, then drains its inbox, steps the engine, publishes events.

Started by `engine.supervisor` as `python -m engine.loop`. It ends when told to, when the server
goes away (its standard input closes), or when something fails; the supervisor decides what then.
"""

import faulthandler
import gc
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import structlog
import zmq

from engine import messages
from engine.errors import EngineError, InsufficientMemory, InternalError
from engine.logs import configure_logging
from engine.request_stream import rejection
from engine.runtime.threads import prepare_process
from engine.stepping import SteppingEngine
from engine.types import EngineStats, GenerateRequest, ModelInfo, Phase, TokenEvent

log = structlog.get_logger(__name__)


class Link:
    """The worker's end of the socket. One thread uses it."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.linger = 1000
        self._socket.connect(address)

    def send(self, message: messages.FromWorker) -> None:
        self._socket.send(messages.encode(message))

    def receive(self) -> messages.ToWorker:
        """Wait for the next message."""
        data: bytes = self._socket.recv()
        return messages.decode_to_worker(data)

    def has_message(self) -> bool:
        return self._socket.poll(timeout=0, flags=zmq.POLLIN) != 0

    def close(self) -> None:
        """Deliver what was sent, for a second at most, and close."""
        self._socket.close()
        self._context.term()

    def report(
        self, phase: Phase, progress: float | None = None, detail: str | None = None
    ) -> None:
        """Tell the server what the worker is doing."""
        self.send(messages.Progress(phase, progress, detail))

    def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
        """Ask the arbiter for memory; returns what is free on the device after it.

        Raises:
            InsufficientMemory: refused; the message says who holds the memory.
        """
        self.send(messages.Reserve(device, purpose, num_bytes, capacity_bytes))
        match answer := self.receive():
            case messages.Granted(free_bytes=free_bytes):
                return free_bytes
            case messages.Denied(message=message):
                raise InsufficientMemory(message)
        raise InternalError(f"expected an answer about memory, got {type(answer).__name__}")


class Loop:
    """Steps the engine while there is work, sleeps on the socket while there is none."""

    def __init__(self, engine: SteppingEngine, link: Link) -> None:
        self._engine = engine
        self._link = link
        self._publish_time_s = 0.0

    def run(self) -> None:
        """Serve until told to shut down."""
        while self._drain_inbox():
            if self._engine.has_work():
                events, stats = self._engine.step()
                self._publish(events, stats)

    def _drain_inbox(self) -> bool:
        """Take in what has arrived; wait when there is nothing to do. False: shut down."""
        while self._link.has_message() or not self._engine.has_work():
            match self._link.receive():
                case messages.Submit(request=request):
                    self._add(request)
                case messages.Abort(request_id=request_id):
                    self._engine.abort(request_id)
                    if not self._engine.has_work():
                        self._publish([], self._engine.stats())
                case messages.Shutdown():
                    return False
        return True

    def _add(self, request: GenerateRequest) -> None:
        try:
            self._engine.add(request)
        except EngineError as error:
            self._publish(rejection(request, error), self._engine.stats())

    def _publish(self, events: list[TokenEvent], stats: EngineStats) -> None:
        start_s = time.perf_counter()
        self._link.send(messages.Step(events, replace(stats, publish_time_s=self._publish_time_s)))
        self._publish_time_s = time.perf_counter() - start_s


def load(spec: messages.WorkerSpec, link: Link) -> tuple[SteppingEngine, ModelInfo]:
    """Fetch and load the model, reporting each phase."""
    # torch takes a second to import: the server hears «starting» before that.
    from engine.llm.loading import load_engine

    cache_dir = Path(spec.cache_dir)
    return load_engine(spec.ref, spec.model, spec.config, cache_dir, spec.offline, link)


def serve(spec: messages.WorkerSpec) -> int:
    """The whole life of a worker. Returns its exit code."""
    link = Link(spec.address)
    try:
        link.report(Phase.STARTING)
        engine, info = load(spec, link)
        link.send(messages.Ready(info))
        # What is loaded stays: without this every full collection would walk all of it.
        gc.collect()
        gc.freeze()
        Loop(engine, link).run()
        engine.shutdown()
    except EngineError as error:
        log.error("worker failed", code=error.code, reason=error.message)
        link.send(messages.Failed(error.code, error.message))
        return 1
    except Exception as error:
        log.exception("worker failed")
        link.send(messages.Failed(InternalError.code, f"{type(error).__name__} in the engine"))
        return 1
    finally:
        link.close()
    return 0


def read_spec() -> messages.WorkerSpec:
    """The length-prefixed specification on standard input."""
    size = int.from_bytes(_read_exactly(4), "little")
    return messages.decode_worker_spec(_read_exactly(size))


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            raise InternalError("standard input ended before the worker knew what to do")
        data += piece
    return data


def end_with_the_server() -> None:
    """Exit at once when standard input closes: the server is gone, nobody waits for answers."""

    def watch() -> None:
        # Not through sys.stdin: a thread inside its lock would abort the interpreter's shutdown.
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="watch-server", daemon=True).start()


def main() -> int:
    """Entry point of the process."""
    faulthandler.enable()
    # Whoever signals the whole group means the server; it drains first and then ends its workers.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    spec = read_spec()
    end_with_the_server()
    configure_logging(spec.log_format, spec.log_level, fields={"model": spec.model})
    prepare_process()
    return serve(spec)


if __name__ == "__main__":
    sys.exit(main())
