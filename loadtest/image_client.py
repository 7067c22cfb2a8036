"""A client of `/images/generations` that times answers and checks the pictures."""

import base64
import binascii
import json
import struct
import time
from dataclasses import dataclass
from typing import Any

from loadtest.client import MAX_ERROR_BYTES, error_text, send_timed, shortened
from loadtest.exchange import Connector, Origin
from loadtest.image_record import ImageRecord
from loadtest.image_workload import PlannedImage

PATH = "/images/generations"

_PNG_HEAD = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_SIZE = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class ImageTarget:
    """The server under test. Requests name `models` in turn, or `model` if none."""

    url: str
    model: str
    timeout_s: float = 600.0
    models: tuple[str, ...] = ()

    def body(self, planned: PlannedImage) -> dict[str, Any]:
        models = self.models or (self.model,)
        return {
            "model": models[planned.index % len(models)],
            "prompt": planned.prompt,
            "n": 1,
            "size": f"{planned.size}x{planned.size}",
            "seed": planned.seed,
            "num_inference_steps": planned.steps,
            "guidance_scale": planned.guidance,
            "output_format": "png",
            "response_format": "b64_json",
        }


class ImageClient:
    """Sends planned requests to one target, each on a connection of its own."""

    def __init__(self, target: ImageTarget) -> None:
        self.target = target
        self._connector = Connector(Origin.parse(target.url))
        self._headers = {"Content-Type": "application/json", "Connection": "close"}

    def encode(self, planned: PlannedImage) -> bytes:
        """The bytes that `send` will write, encoded before the run to keep the run cheap."""
        body = json.dumps(self.target.body(planned)).encode()
        return self._connector.origin.request("POST", PATH, self._headers, body)

    def new_record(self, planned: PlannedImage) -> ImageRecord:
        return ImageRecord(
            planned.index, planned.size, planned.steps, role=planned.role, at_s=planned.at_s
        )

    async def send(self, request: bytes, record: ImageRecord, started: float) -> None:
        """Send `request` and fill in `record`, whatever happens; only cancellation is raised.

        `started` is the run's zero on `time.perf_counter()`.
        """
        sent = time.perf_counter()
        record.sent_s = sent - started
        answer = _Answer(record)
        await send_timed(self._connector, request, record, answer, sent, self.target.timeout_s)


class _Answer:
    """Collects one answer; the picture is checked once it is complete."""

    def __init__(self, record: ImageRecord) -> None:
        self._record = record
        self._body = bytearray()
        self.error: str | None = None

    def on_body(self, status: int, piece: bytes, at: float) -> None:
        if status == 200 or len(self._body) < MAX_ERROR_BYTES:
            self._body += piece

    def problem(self, status: int) -> str | None:
        """Why a complete HTTP answer is not the picture that was asked for, or None if it is."""
        body = bytes(self._body)
        if status != 200:
            return f"HTTP {status}: {error_text(body)}"
        try:
            (image,) = json.loads(body)["data"]
            picture = base64.b64decode(image["b64_json"], validate=True)
        except (ValueError, TypeError, KeyError, binascii.Error):
            return f"no picture in the answer: {shortened(body[:MAX_ERROR_BYTES])}"
        self._record.num_bytes = len(picture)
        return _picture_problem(picture, self._record.size)


def _picture_problem(picture: bytes, size: int) -> str | None:
    if not (picture.startswith(_PNG_HEAD) and picture.endswith(_PNG_END)):
        return "the picture is not a whole PNG file"
    width, height = _PNG_SIZE.unpack_from(picture, len(_PNG_HEAD))
    if (width, height) != (size, size):
        return f"the picture is {width}x{height}, not {size}x{size}"
    return None
