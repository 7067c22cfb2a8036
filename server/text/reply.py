"""What chat and completion replies share: identity, the course of a stream, how they are sent."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from engine.types import ModelInfo
from server.http.catalog import system_fingerprint
from server.http.sse import EventStream, event, until_disconnect
from server.middleware.access_log import annotate
from server.protocol.answers import Usage
from server.protocol.common import StreamOptions
from server.settings import Settings
from server.text.generation import Generation
from server.text.output import Delta

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """The fields that every chunk of a reply repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def create(cls, prefix: str, info: ModelInfo) -> "ReplyHead":
        """A new reply of a model; `prefix` is OpenAI's for the kind of reply."""
        fingerprint = system_fingerprint(info.model, info.config_hash)
        return cls(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), info.model, fingerprint)


class Reply(ABC):
    """A generation in one of OpenAI's shapes. Either `whole` or `events` is called, once."""

    def __init__(
        self, head: ReplyHead, generation: Generation, options: StreamOptions | None
    ) -> None:
        self.head = head
        self.generation = generation
        self._usage_at_end = bool(options and options.include_usage)
        self._usage_always = bool(options and options.continuous_usage_stats)

    async def whole(self) -> bytes:
        """The JSON of everything at once."""
        parts: list[list[Delta]] = [[] for _ in range(self.generation.num_choices)]
        async with aclosing(self.generation.deltas()) as deltas:
            async for delta in deltas:
                parts[delta.index].append(delta)
        return _encode(self._answer(parts))

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events as the text arrives, without the final `[DONE]`."""
        opened: set[int] = set()
        async with aclosing(self.generation.deltas()) as deltas:
            async for delta in deltas:
                chunks = self._chunks(delta)
                if delta.index not in opened:
                    opened.add(delta.index)
                    chunks = [*self._opening(delta.index), *chunks]
                if chunks:
                    yield b"".join([event(_encode(chunk)) for chunk in chunks])
        if self._usage_at_end:
            yield event(_encode(self._usage_chunk(self.generation.usage())))

    @abstractmethod
    def _answer(self, parts: list[list[Delta]]) -> Any:
        """The body of a whole reply, from the deltas of each choice."""

    @abstractmethod
    def _opening(self, index: int) -> list[Any]:
        """The chunks that come before a choice's text."""

    @abstractmethod
    def _chunks(self, delta: Delta) -> list[Any]:
        """A delta's chunks; none while its text is held back."""

    @abstractmethod
    def _usage_chunk(self, usage: Usage) -> Any:
        """The chunk without choices that ends a stream."""

    def _usage_so_far(self) -> Usage | msgspec.UnsetType | None:
        """A chunk's `usage`: absent, null until the last chunk, or the numbers so far."""
        if not self._usage_at_end:
            return msgspec.UNSET
        return self.generation.usage() if self._usage_always else None


async def send_reply(
    request: Request,
    reply: Reply,
    *,
    stream: bool | None,
    settings: Settings,
    headers: Mapping[str, str],
) -> Response:
    """Answer whole or as a stream. Either way the generation is closed when the client leaves.

    Args:
        headers: those of `ignored_fields_header`.

    Raises:
        EngineError: the engine failed before the first byte.
    """
    if headers:
        annotate(request, ignored_fields=headers["X-Ignored-Fields"])

    async def close() -> None:
        await reply.generation.aclose()
        _annotate(request, reply.generation, with_text=settings.log_prompts)

    if stream:
        return EventStream(
            reply.events(), close, heartbeat_s=settings.heartbeat_interval_s, headers=headers
        )
    try:
        body = await until_disconnect(request.receive, reply.whole())
    finally:
        await close()
    return Response(body, media_type="application/json", headers=headers)


def _annotate(request: Request, generation: Generation, *, with_text: bool) -> None:
    usage = generation.usage()
    annotate(
        request,
        num_prompt_tokens=usage.prompt_tokens,
        num_cached_tokens=usage.prompt_tokens_details.cached_tokens,
        num_generation_tokens=usage.completion_tokens,
    )
    if with_text:
        annotate(request, answers=[c.text for run in generation.runs for c in run.choices])
