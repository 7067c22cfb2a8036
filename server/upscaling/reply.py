"""An enlarged image in OpenAI's shape, whole or as server-sent events."""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict

from engine.contract.enlarge import UpscaleEvent, UpscaleRequest
from engine.contract.examination import Examination
from engine.contract.pixels import Pixels
from server.http.engine_run import EngineRun
from server.http.reply import Reply
from server.http.shape import Shape, encode
from server.http.sse import named_event
from server.images.files import encode_image
from server.images.store import Keep
from server.protocol.image_answers import OutputFormatName
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
        request: without its image, which the engine has.
        scale: as the client asked for it.
        keep: stores the finished image; None answers with the image itself.
    """

    def __init__(
        self,
        run: EngineRun,
        events: Callable[[], AsyncGenerator[UpscaleEvent, None]],
        request: UpscaleRequest,
        *,
        scale: float,
        channels: int,
        output_format: OutputFormatName,
        compression: int,
        keep: Keep | None,
        seed: int | None = None,
        shape: Shape | None = None,
    ) -> None:
        super().__init__(run, shape)
        self._events = events
        self._request = request
        self._scale = scale
        self._format = output_format
        self._compression = compression
        self._keep = keep
        self._seed = seed
        self._warnings: tuple[str, ...] = ()
        self._created = int(time.time())
        self._result = ResultFile(
            request.width, request.height, channels, output_format, compression
        )
        self._num_tiles = 0
        self._examination: Examination | None = None

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
        self._num_tiles = event.num_tiles
        self._examination = event.examination or self._examination
        self._warnings = event.warnings or self._warnings
        if event.rows:
            await asyncio.to_thread(self._result.add, event.rows)

    def _progress(self, event: UpscaleEvent) -> bytes:
        body = UpscaleProgressEvent(
            id=self._request.request_id,
            tile=event.tile,
            num_tiles=event.num_tiles,
            progress=round(event.tile / event.num_tiles, 4),
        )
        return named_event(body.type, encode(body))

    async def _partial(self, event: UpscaleEvent, pixels: Pixels) -> bytes:
        file = await asyncio.to_thread(encode_image, pixels, self._format, self._compression)
        body = PartialUpscaleEvent(
            id=self._request.request_id,
            b64_json=_base64(file),
            created_at=int(time.time()),
            output_format=self._format,
            partial_image_index=event.preview_index,
            size=f"{pixels.width}x{pixels.height}",
            tile=event.tile,
            num_tiles=event.num_tiles,
        )
        return named_event(body.type, encode(body))

    def _written(self, file: bytes, url: str | None) -> bytes:
        image = UpscaledImage(b64_json=None if url else _base64(file), url=url)
        answer = UpscaleAnswer(
            created=self._created,
            data=[image],
            output_format=self._format,
            warnings=list(self._warnings),
            **asdict(self._facts()),
        )
        return self._shape.whole(answer)

    def _completed(self, file: bytes, url: str | None) -> bytes:
        body = CompletedUpscaleEvent(
            b64_json=None if url else _base64(file),
            url=url,
            created_at=int(time.time()),
            output_format=self._format,
            warnings=list(self._warnings),
            **asdict(self._facts()),
        )
        return named_event(body.type, encode(body))

    def _facts(self) -> UpscaleFacts:
        request, found = self._request, self._examination
        heat_map = found.heat_map if found else None
        return UpscaleFacts(
            id=request.request_id,
            model=request.model,
            size=f"{request.width}x{request.height}",
            scale=self._scale,
            tile=request.tile,
            overlap=request.overlap,
            exact=request.exact,
            num_tiles=self._num_tiles,
            consistency=found.consistency if found else None,
            num_faces=found.num_faces if found else None,
            seed=self._seed,
            heat_map=_base64(encode_image(heat_map, "png", 100)) if heat_map else None,
        )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
