"""What crosses the border between the server process and a worker process.

msgspec structs with a tag each, in MessagePack. Those that carry a kind's own types (`Submit`,
`Ready`, `Step`) are made by `of`, and name the kind beside a body. Where such a message arrives the
body is still encoded: `read` checks it against the types in the kind's row (`engine.kinds`). A
worker first reads one `WorkerSpec` from its standard input; everything else goes over one zmq PAIR
socket.
"""

from collections.abc import Sequence
from functools import lru_cache
from types import GenericAlias
from typing import Any, Self

import msgspec

from engine.adapter_orders import AdapterOrder, AdapterReport
from engine.config import CpuIsa, EngineConfig
from engine.errors import Failure
from engine.kinds import KINDS, AnyKind, kind_of
from engine.types import Event, Info, Phase, Request, Stats

encode = msgspec.msgpack.Encoder().encode


def _body(value: Any) -> msgspec.Raw:
    """A body that its message encodes: encoded before it, pictures would be copied once more."""
    body: msgspec.Raw = value
    return body


@lru_cache
def _request_decoder(kind: AnyKind) -> msgspec.msgpack.Decoder[Request[Any]]:
    return msgspec.msgpack.Decoder(kind.request)


@lru_cache
def _info_decoder(kind: AnyKind) -> msgspec.msgpack.Decoder[Info]:
    return msgspec.msgpack.Decoder(kind.info)


@lru_cache
def _step_decoder(kind: AnyKind) -> msgspec.msgpack.Decoder[tuple[list[Event], Stats]]:
    events = GenericAlias(list, (kind.event,))
    return msgspec.msgpack.Decoder(GenericAlias(tuple, (events, kind.stats)))


class WorkerSpec(msgspec.Struct, frozen=True):
    """All a worker needs to start. Sent once, before the socket exists."""

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
    """Where it writes its signs of life: `engine.pulse`."""


class Submit(msgspec.Struct, tag="submit", frozen=True):
    """A request."""

    kind: str
    body: msgspec.Raw

    @classmethod
    def of(cls, request: Request[Any]) -> Self:
        return cls(kind_of(request).name, _body(request))

    def read(self) -> Request[Any]:
        """The request.

        Raises:
            ValidationError, DecodeError: it is not one of its kind.
            KeyError: there is no such kind.
        """
        return _request_decoder(KINDS[self.kind]).decode(self.body)

    def request_id(self) -> str | None:
        """Whose request it is, if that can be told of one that cannot be read."""
        try:
            found = msgspec.msgpack.decode(self.body)["request_id"]
        except (msgspec.DecodeError, KeyError, TypeError):
            return None
        return found if isinstance(found, str) else None


class Abort(msgspec.Struct, tag="abort", frozen=True):
    request_id: str
    index: int | None = None
    """Of the completion that nobody reads on. None: of the whole request."""


class Granted(msgspec.Struct, tag="granted", frozen=True):
    """Answer to the `Reserve` of that id: what is still free on the device after it."""

    id: int
    free_bytes: int


class Denied(msgspec.Struct, tag="denied", frozen=True):
    """Answer to the `Reserve` of that id: who holds the memory."""

    id: int
    failure: Failure


class Throttle(msgspec.Struct, tag="throttle", frozen=True):
    """Leave time to others: sleep so that steps take at most this share. None: no longer."""

    share: float | None


class LoadAdapter(msgspec.Struct, tag="load_adapter", frozen=True):
    """Load a LoRA adapter; `AdapterChanged` answers."""

    id: int
    """The server's own number of it."""
    order: AdapterOrder


class UnloadAdapter(msgspec.Struct, tag="unload_adapter", frozen=True):
    """Take no more requests for an adapter; `AdapterChanged` answers once it has none."""

    id: int
    name: str


class Shutdown(msgspec.Struct, tag="shutdown", frozen=True):
    pass


class Progress(msgspec.Struct, tag="progress", frozen=True):
    phase: Phase
    progress: float | None = None
    detail: str | None = None
    kind: str | None = None
    """Name of the model's kind, once that is known."""


class Reserve(msgspec.Struct, tag="reserve", frozen=True):
    """Ask the arbiter for memory, at any time; `Granted` or `Denied` answers, perhaps behind other
    messages."""

    id: int
    """The worker's own number of it."""
    device: str
    purpose: str
    num_bytes: int
    capacity_bytes: int
    """What the device had free when the worker looked: the budget, if it is not known yet."""


class Release(msgspec.Struct, tag="release", frozen=True):
    """Give back what the `Reserve` of that id was granted. A worker's end gives back all."""

    id: int


class Found(msgspec.Struct, tag="found", frozen=True):
    """A checkpoint with a text side is on this machine: that side can be tried."""

    path: str


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The model is loaded; with its info."""

    kind: str
    body: msgspec.Raw

    @classmethod
    def of(cls, info: Info) -> Self:
        return cls(kind_of(info).name, _body(info))

    def read(self) -> Info:
        """The info. Raises as `Submit.read` does."""
        return _info_decoder(KINDS[self.kind]).decode(self.body)


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The worker gives up; its log has the details."""

    failure: Failure


class Step(msgspec.Struct, tag="step", frozen=True):
    """One step's events and statistics."""

    kind: str
    body: msgspec.Raw

    @classmethod
    def of(cls, events: Sequence[Event], stats: Stats) -> Self:
        return cls(kind_of(stats).name, _body((events, stats)))

    def read(self) -> tuple[list[Event], Stats]:
        """Events and statistics. Raises as `Submit.read` does."""
        return _step_decoder(KINDS[self.kind]).decode(self.body)


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """A request ends with this error: it could not be read, or its events could not be written."""

    request_id: str
    failure: Failure


class AdapterChanged(msgspec.Struct, tag="adapter_changed", frozen=True):
    """Answer to the `LoadAdapter` or `UnloadAdapter` of that id, with what was loaded, or why it
    could not be done."""

    id: int
    report: AdapterReport | None = None
    failure: Failure | None = None


ToWorker = Submit | Abort | Granted | Denied | Throttle | LoadAdapter | UnloadAdapter | Shutdown
FromWorker = Progress | Reserve | Release | Found | Ready | Failed | Refused | AdapterChanged | Step

_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
decode_to_worker = _to_worker.decode
decode_from_worker = _from_worker.decode
decode_worker_spec = msgspec.msgpack.Decoder(WorkerSpec).decode
