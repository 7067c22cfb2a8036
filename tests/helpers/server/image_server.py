"""Servers over an engine that draws, enlarges and removes backgrounds, and their pictures."""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import httpx
import numpy as np
from PIL import Image

from engine.contract.draw import ImageRequest
from engine.contract.request import Info
from tests.helpers.server.fake_engine import FakeEngine
from tests.helpers.server.fake_images import image_info, matting_info, upscaler_info
from tests.helpers.server.fake_server import FakeServer

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
VARIATIONS = "/v1/images/variations"
MATTE = "/v1/images/matte"
DIGEST = "0123456789abcdef" * 4


class ImageServer(FakeServer):
    """An app over models that draw, enlarge and remove backgrounds."""

    default: ClassVar[Sequence[Info]] = (image_info(),)
    """What is served unless the test says otherwise."""

    def __init__(self, *infos: Info, **settings: Any) -> None:
        super().__init__(FakeEngine(*infos or self.default), **settings)

    async def generate(self, **body: Any) -> httpx.Response:
        return await self.client.post(GENERATIONS, json={"prompt": "a red circle"} | body)

    async def edit(
        self, image: bytes | None = None, mask: bytes | None = None, **fields: str
    ) -> httpx.Response:
        files = [("image", ("a.png", image or png(), "image/png"))]
        if mask is not None:
            files.append(("mask", ("m.png", mask, "image/png")))
        data = {"prompt": "make it blue"} | fields
        return await self.client.post(EDITS, files=files, data=data)

    async def vary(self, **fields: str) -> httpx.Response:
        files = [("image", ("a.png", png(), "image/png"))]
        return await self.client.post(VARIATIONS, files=files, data=fields)

    async def matte(self, **body: Any) -> httpx.Response:
        return await self.client.post(MATTE, json={"image": data_url(png())} | body)

    @property
    def last(self) -> ImageRequest:
        request: ImageRequest = self.engine.requests_for("draw")[-1]
        return request


class MattingServer(ImageServer):
    """An app over a model that removes backgrounds, `cutter`, or over those given."""

    default = (matting_info(),)

    async def form(self, files: dict[str, bytes], **fields: str) -> httpx.Response:
        parts = [(name, ("a.png", data, "image/png")) for name, data in files.items()]
        return await self.client.post(MATTE, files=parts, data=fields)


class ChainServer(ImageServer):
    """An app over the models `painter`, `enlarger` and `cutter`, or over those given."""

    default = tuple(info(digest=DIGEST) for info in (image_info, upscaler_info, matting_info))

    async def chain(self, *then: Any, **body: Any) -> httpx.Response:
        return await self.generate(then=list(then), **body)


def png(width: int = 64, height: int = 48, mode: str = "RGB") -> bytes:
    """Make a PNG file with a gradient."""
    ramp = np.add.outer(np.arange(height), np.arange(width)).astype(np.uint8)
    image = Image.fromarray(ramp).convert(mode)
    return saved(image)


def mask_png(width: int = 64, height: int = 48, *, marked: bool = True) -> bytes:
    """Make a mask in OpenAI's notation: its left half is transparent."""
    alpha = np.full((height, width), 255, np.uint8)
    if marked:
        alpha[:, : width // 2] = 0
    image = Image.new("RGB", (width, height), "black")
    image.putalpha(Image.fromarray(alpha))
    return saved(image)


def saved(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def opened(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64, validate=True)))


def named_events(text: str) -> list[tuple[str, Any]]:
    """Return (name, data) of a stream's events, which must be well-formed and end with [DONE]."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert blocks[-1] == "data: [DONE]"
    events = []
    for block in blocks[:-1]:
        lines = block.split("\n")
        if len(lines) == 1:
            events.append(("", json.loads(lines[0].removeprefix("data: "))))
            continue
        name, data = lines
        assert name.startswith("event: ") and data.startswith("data: ")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events
