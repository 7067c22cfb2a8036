"""What crosses the border between the server process and a worker process.

msgspec structs with a tag each, in MessagePack, around the plain types of `engine.types`. A worker
first reads one `WorkerSpec` from its standard input; everything else goes over one zmq PAIR socket.
"""

import msgspec

from engine.config import CpuIsa, EngineConfig
from engine.image_types import ImageEvent, ImageModelInfo, ImageRequest, ImageStats
from engine.types import EngineStats, GenerateRequest, ModelInfo, ModelKind, Phase, TokenEvent


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
    request: GenerateRequest


class SubmitImage(msgspec.Struct, tag="submit_image", frozen=True):
    request: ImageRequest


class Abort(msgspec.Struct, tag="abort", frozen=True):
    request_id: str


class Granted(msgspec.Struct, tag="granted", frozen=True):
    """Answer to `Reserve`: what is still free on the device after it."""

    free_bytes: int


class Denied(msgspec.Struct, tag="denied", frozen=True):
    """Answer to `Reserve`: who holds the memory, in one line."""

    message: str


class Throttle(msgspec.Struct, tag="throttle", frozen=True):
    """Leave time to others: sleep so that steps take at most this share. None: no longer."""

    share: float | None


class Shutdown(msgspec.Struct, tag="shutdown", frozen=True):
    pass


class Progress(msgspec.Struct, tag="progress", frozen=True):
    phase: Phase
    progress: float | None = None
    detail: str | None = None
    kind: ModelKind | None = None


class Reserve(msgspec.Struct, tag="reserve", frozen=True):
    """Ask the arbiter for memory; the worker waits for `Granted` or `Denied`."""

    device: str
    purpose: str
    num_bytes: int
    capacity_bytes: int
    """What the device had free when the worker looked: the budget, if it is not known yet."""


class Found(msgspec.Struct, tag="found", frozen=True):
    """A text model's checkpoint is on this machine: its text side can be tried."""

    path: str


class Ready(msgspec.Struct, tag="ready", frozen=True):
    info: ModelInfo


class ImageReady(msgspec.Struct, tag="image_ready", frozen=True):
    info: ImageModelInfo


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The worker gives up; its log has the details."""

    code: str
    message: str
    hint: str | None = None
    """For the operator alone: it may name paths."""


class Step(msgspec.Struct, tag="step", frozen=True):
    """One step's events and statistics."""

    events: list[TokenEvent]
    stats: EngineStats


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """A request ends with this error: it could not be read, or its events could not be written."""

    request_id: str
    code: str
    message: str


class ImageStep(msgspec.Struct, tag="image_step", frozen=True):
    """The same of an image engine."""

    events: list[ImageEvent]
    stats: ImageStats


ToWorker = Submit | SubmitImage | Abort | Granted | Denied | Throttle | Shutdown
FromWorker = Progress | Reserve | Found | Ready | ImageReady | Failed | Refused | Step | ImageStep

encode = msgspec.msgpack.Encoder().encode
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
decode_to_worker = _to_worker.decode
decode_from_worker = _from_worker.decode
decode_worker_spec = msgspec.msgpack.Decoder(WorkerSpec).decode


def request_id_of(data: bytes) -> str | None:
    """Whose request a message carries that is not as it should be, if that can be told."""
    try:
        found = msgspec.msgpack.decode(data)["request"]["request_id"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
