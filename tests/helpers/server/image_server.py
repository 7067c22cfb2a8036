"""A server over an engine that paints, for the tests of the image routes."""

import base64
import io
import json
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import numpy as np
from PIL import Image

from engine.contract.draw import ImageModelInfo, ImageRequest
from engine.contract.generate import ModelInfo
from server.app import create_app
from server.settings import Settings
from tests.helpers.server.fake_image_engine import FakeImageEngine
from tests.helpers.server.listening import listening

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
VARIATIONS = "/v1/images/variations"


class ImageServer:
    """An app, its engine and a client that talks to it in memory."""

    def __init__(self, *infos: ImageModelInfo | ModelInfo, **settings: Any) -> None:
        self.engine = FakeImageEngine(*infos)
        self.settings = Settings(**settings)
        self.engine.config_of_server = self.settings.engine
        self.app = create_app(self.settings, self.engine)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

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

    @property
    def last(self) -> ImageRequest:
        return self.engine.last_image_request

    def listening(self) -> AbstractAsyncContextManager[str]:
        """Serve on a real port, in this event loop; gives the base URL."""
        return listening(self.app)


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


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """Return the error of a refused request, which must have the usual shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


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
