"""The messages between the server process and a worker process.

They are msgspec structs with a tag, in MessagePack. Those that carry an operation's own types
(`Submit`, `Ready`, `Step`) are made by `of` and name the operation beside a body. The receiver gets
the body still encoded, and `read` checks it against the types in the operation's row
(`engine.contract.operations`). A
worker first reads one `WorkerSpec` from its standard input; everything else goes over one zmq PAIR
socket. The pixels of pictures follow their message as separate frames, since copying them would
hold up the event loop.
"""

from collections.abc import Sequence
from types import GenericAlias
from typing import Any, Self, TypeVar

import msgspec

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.operations import OPERATIONS, AnyOperation, operation_of
from engine.contract.pixels import Pixels
from engine.contract.request import Event, Info, Request, Stats
from engine.contract.settings import EngineConfig
from engine.contract.status import Phase
from engine.contract.worker_settings import CpuIsa
from engine.errors import Failure

encode = msgspec.msgpack.Encoder().encode

T = TypeVar("T")
_MessageT = TypeVar("_MessageT")


def frames_of(message: "ToWorker | FromWorker") -> list[bytes]:
    """The message as frames: itself, then the pixels of its pictures in its own order."""
    pixels: list[bytes] = []

    def set_aside(value: Any) -> Any:
        if not isinstance(value, Pixels):
            raise NotImplementedError(f"a {type(value).__name__} cannot be sent")
        pixels.append(value.data)
        return value.width, value.height, value.channels, len(pixels) - 1

    data = msgspec.msgpack.encode(message, enc_hook=set_aside)
    return [data, *pixels]


def _body(value: Any) -> msgspec.Raw:
    """A body that is encoded together with its message."""
    body: msgspec.Raw = value
    return body


def _read(body: msgspec.Raw, expected: type[T], pixels: Sequence[bytes]) -> T:
    def picture(_: type, value: Any) -> Pixels:
        width, height, channels, place = value
        return Pixels(width=width, height=height, channels=channels, data=pixels[place])

    return msgspec.msgpack.decode(body, type=expected, dec_hook=picture)


def _step_type(events: AnyOperation, stats: AnyOperation) -> Any:
    return GenericAlias(tuple, (GenericAlias(list, (events.event,)), stats.stats))


class WorkerSpec(msgspec.Struct, frozen=True):
    """Everything that a worker needs to start. Sent once, before the socket exists."""

    address: str
    ref: str
    model: str
    config: EngineConfig
    cache_dir: str
    offline: bool
    cpu_isa: CpuIsa
    log_format: str
    log_level: str
    pulse_fd: int
    """The descriptor for its signs of life (`engine.processes.pulse`)."""
    rank: int = 0
    """Its number among the replicas of a model, counted from 0."""


class Submit(msgspec.Struct, tag="submit", frozen=True, omit_defaults=True):
    """A request."""

    operation: str
    body: msgspec.Raw
    variant: str = ""
    pixels: tuple[bytes, ...] = ()
    """The pixels of its pictures, after its arrival."""

    @classmethod
    def of(cls, request: Request[Any]) -> Self:
        return cls(operation_of(request).name, _body(request), request.variant)

    def read(self) -> Request[Any]:
        """The request.

        Raises:
            ValidationError, DecodeError: the body is not a request for that operation.
            KeyError: there is no such operation or variant.
        """
        expected = OPERATIONS[self.operation].request_type(self.variant)
        return _read(self.body, expected, self.pixels)

    def request_id(self) -> str | None:
        """The request's id, if it can be found in a body that cannot be read."""
        try:
            found = msgspec.msgpack.decode(self.body)["request_id"]
        except (msgspec.DecodeError, KeyError, TypeError):
            return None
        return found if isinstance(found, str) else None


class Abort(msgspec.Struct, tag="abort", frozen=True):
    request_id: str
    index: int | None = None
    """The index of the completion that nobody reads any more. None is the whole request."""


class Granted(msgspec.Struct, tag="granted", frozen=True):
    """Grants the `Reserve` of that id, with the device's free bytes after it."""

    id: int
    free_bytes: int


class Denied(msgspec.Struct, tag="denied", frozen=True):
    """Denies the `Reserve` of that id, and says who holds the memory."""

    id: int
    failure: Failure


class Throttle(msgspec.Struct, tag="throttle", frozen=True):
    """Orders the worker to sleep so that steps take at most this share of the time. None ends
    that."""

    share: float | None


class LoadAdapter(msgspec.Struct, tag="load_adapter", frozen=True):
    """Orders the load of a LoRA adapter; `AdapterChanged` answers."""

    id: int
    """The server's number of this order."""
    order: AdapterOrder


class UnloadAdapter(msgspec.Struct, tag="unload_adapter", frozen=True):
    """Orders that an adapter takes no more requests; `AdapterChanged` answers once it has none."""

    id: int
    name: str


class ResetPrefixCache(msgspec.Struct, tag="reset_prefix_cache", frozen=True):
    """Has requests that are sent later find nothing of earlier ones in the prefix cache."""


class Profile(msgspec.Struct, tag="profile", frozen=True):
    """Starts to profile steps, or stops and writes the trace."""

    on: bool


class Shutdown(msgspec.Struct, tag="shutdown", frozen=True):
    pass


class Doze(msgspec.Struct, tag="doze", frozen=True):
    """Puts the memory of an idle model into a file. `Dozing` answers."""

    folder: str
    most_bytes: int
    """The largest file."""


class WakeUp(msgspec.Struct, tag="wake_up", frozen=True):
    """Ends the doze; `Awake` answers."""


class Dozing(msgspec.Struct, tag="dozing", frozen=True):
    """Says that the model's memory is in a file, or that it cannot be."""

    file_bytes: int = 0
    """The size of the file; 0 if there is none."""
    process_bytes: int = 0
    """The memory that the process still has for itself."""


class Awake(msgspec.Struct, tag="awake", frozen=True):
    """Says that the model has its memory again."""


class Progress(msgspec.Struct, tag="progress", frozen=True):
    phase: Phase
    progress: float | None = None
    detail: str | None = None
    kind: str | None = None
    """The name of the model's kind, once known."""


class Reserve(msgspec.Struct, tag="reserve", frozen=True):
    """Asks the arbiter for memory, at any time; `Granted` or `Denied` answers, possibly after other
    messages."""

    id: int
    """The worker's number of this message."""
    device: str
    purpose: str
    num_bytes: int
    capacity_bytes: int
    """The device's free bytes when the worker looked, which become the budget if none is known
    yet."""
    shared_bytes: int = 0
    """What the worker takes in addition and shares with all others."""


class Release(msgspec.Struct, tag="release", frozen=True):
    """Returns what the `Reserve` of that id was granted. A worker's end returns everything."""

    id: int


class Found(msgspec.Struct, tag="found", frozen=True):
    """Says that a checkpoint with a text side is on this machine, so that side can be tried."""

    path: str


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """Says that the model is loaded, with its info."""

    operation: str
    body: msgspec.Raw

    @classmethod
    def of(cls, info: Info) -> Self:
        return cls(operation_of(info).name, _body(info))

    def read(self) -> Info:
        """The info. Raises as `Submit.read` does."""
        info: Info = _read(self.body, OPERATIONS[self.operation].info, ())
        return info


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """Says that the worker gives up; its log has the details."""

    failure: Failure


class Step(msgspec.Struct, tag="step", frozen=True, omit_defaults=True):
    """One step's statistics and its events of one operation."""

    operation: str
    """The operation of the events."""
    stats: str
    """The operation of the statistics."""
    body: msgspec.Raw
    pixels: tuple[bytes, ...] = ()
    """The pixels of its pictures, after its arrival."""

    @classmethod
    def of(cls, events: Sequence[Event], stats: Stats) -> Self:
        own = operation_of(stats)
        of_events = operation_of(events[0]) if events else own
        return cls(of_events.name, own.name, _body((events, stats)))

    def read(self) -> tuple[list[Event], Stats]:
        """Events and statistics. Raises as `Submit.read` does."""
        found: tuple[list[Event], Stats] = _read(
            self.body,
            _step_type(OPERATIONS[self.operation], OPERATIONS[self.stats]),
            self.pixels,
        )
        return found


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """Ends a request with an error: it could not be read, or its events could not be written."""

    request_id: str
    failure: Failure


class AdapterChanged(msgspec.Struct, tag="adapter_changed", frozen=True):
    """Answers the `LoadAdapter` or `UnloadAdapter` of that id with what was loaded, or with an
    error."""

    id: int
    report: AdapterReport | None = None
    failure: Failure | None = None


ToWorker = (
    Submit
    | Abort
    | Granted
    | Denied
    | Throttle
    | LoadAdapter
    | UnloadAdapter
    | ResetPrefixCache
    | Profile
    | Doze
    | WakeUp
    | Shutdown
)
FromWorker = (
    Progress
    | Reserve
    | Release
    | Found
    | Ready
    | Failed
    | Refused
    | AdapterChanged
    | Step
    | Dozing
    | Awake
)

_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def decode_to_worker(data: bytes, *pixels: bytes) -> ToWorker:
    """Decode a message from its frames."""
    return _with_pixels(_to_worker.decode(data), pixels)


def decode_from_worker(data: bytes, *pixels: bytes) -> FromWorker:
    """Decode a message from its frames."""
    return _with_pixels(_from_worker.decode(data), pixels)


def _with_pixels(message: _MessageT, pixels: tuple[bytes, ...]) -> _MessageT:
    if pixels and isinstance(message, Submit | Step):
        return msgspec.structs.replace(message, pixels=pixels)
    return message


decode_worker_spec = msgspec.msgpack.Decoder(WorkerSpec).decode
