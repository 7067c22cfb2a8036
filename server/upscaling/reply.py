"""An enlarged image in OpenAI's shape, whole or as server-sent events."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from engine.contract.enlarge import UpscaleEvent
from engine.contract.pixels import Pixels
from server.http.engine_run import EngineRun
from server.http.reply import Reply
from server.http.shape import Shape, encode
from server.http.sse import named_event
from server.images.files import base64_text, encode_image
from server.images.store import Keep
from server.protocol.upscaling import (
    CompletedUpscaleEvent,
    PartialUpscaleEvent,
    UpscaleAnswer,
    UpscaledImage,
    UpscaleFacts,
    UpscaleProgressEvent,
)
from server.upscaling.result import ResultFile


class UpscaleReply(Reply):
    """The reply with the enlarged image of a run.

    Args:
        events: the engine's events, to the last one.
        facts: what is known before the engine's first event.
        file: the file to make.
        keep: stores the finished image; None answers with the image itself.
    """

    def __init__(
        self,
        run: EngineRun,
        events: Callable[[], AsyncGenerator[UpscaleEvent, None]],
        facts: UpscaleFacts,
        file: ResultFile,
        keep: Keep | None,
        shape: Shape | None = None,
    ) -> None:
        super().__init__(run, shape)
        self._events = events
        self._facts = facts
        self._result = file
        self._keep = keep
        self._warnings: tuple[str, ...] = ()
        self._created = int(time.time())
        self._heat_map: Pixels | None = None

    async def whole(self) -> bytes:
        async with aclosing(self._events()) as events:
            async for event in events:
                await self._take(event)
        file = await asyncio.to_thread(self._result.file)
        url = self._keep(file) if self._keep else None
        return await asyncio.to_thread(self._written, file, url)

    async def events(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._events()) as events:
            async for event in events:
                await self._take(event)
                if event.preview is not None:
                    yield await self._partial(event, event.preview)
                yield self._progress(event)
        file = await asyncio.to_thread(self._result.file)
        url = self._keep(file) if self._keep else None
        yield await asyncio.to_thread(self._completed, file, url)

    async def _take(self, event: UpscaleEvent) -> None:
        self._facts.num_tiles = event.num_tiles
        if event.examination is not None:
            self._facts.consistency = event.examination.consistency
            self._facts.num_faces = event.examination.num_faces
            self._heat_map = event.examination.heat_map
        self._warnings = event.warnings or self._warnings
        if event.rows:
            await asyncio.to_thread(self._result.add, event.rows)

    def _progress(self, event: UpscaleEvent) -> bytes:
        body = UpscaleProgressEvent(
            id=self._facts.id,
            tile=event.tile,
            num_tiles=event.num_tiles,
            progress=round(event.tile / event.num_tiles, 4),
        )
        return named_event(body.type, encode(body))

    async def _partial(self, event: UpscaleEvent, pixels: Pixels) -> bytes:
        file = await asyncio.to_thread(
            encode_image, pixels, self._result.format, self._result.compression
        )
        body = PartialUpscaleEvent(
            id=self._facts.id,
            b64_json=base64_text(file),
            created_at=int(time.time()),
            output_format=self._result.format,
            partial_image_index=event.preview_index,
            size=f"{pixels.width}x{pixels.height}",
            tile=event.tile,
            num_tiles=event.num_tiles,
        )
        return named_event(body.type, encode(body))

    def _written(self, file: bytes, url: str | None) -> bytes:
        image = UpscaledImage(b64_json=None if url else base64_text(file), url=url)
        answer = UpscaleAnswer(
            created=self._created,
            data=[image],
            output_format=self._result.format,
            warnings=list(self._warnings),
            **self._fields(),
        )
        return self._shape.whole(answer)

    def _completed(self, file: bytes, url: str | None) -> bytes:
        body = CompletedUpscaleEvent(
            b64_json=None if url else base64_text(file),
            url=url,
            created_at=int(time.time()),
            output_format=self._result.format,
            warnings=list(self._warnings),
            **self._fields(),
        )
        return named_event(body.type, encode(body))

    def _fields(self) -> dict[str, Any]:
        """The facts, as fields of an answer."""
        if self._heat_map is not None:
            self._facts.heat_map = base64_text(encode_image(self._heat_map, "png", 100))
        return asdict(self._facts)
