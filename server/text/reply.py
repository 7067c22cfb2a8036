"""The common part of chat and completion replies: identity, and the order of a stream."""

import hashlib
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar

import msgspec

from engine.contract.generate import ModelInfo
from engine.version import __version__
from server.http.reply import Reply
from server.http.shape import Shape
from server.protocol.answers import Usage
from server.protocol.common import StreamOptions
from server.text.generation import Generation
from server.text.output import Delta, DeltaSum


@lru_cache(maxsize=256)
def system_fingerprint(model: str, config_hash: str, *digests: str) -> str:
    """A fingerprint that changes with the server's version, the model's name, the engine's
    configuration, and the files of the model and of the requested adapter."""
    text = "|".join((__version__, model, config_hash, *digests))
    return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """The fields that every chunk of a reply repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def create(cls, id: str, info: ModelInfo) -> "ReplyHead":
        """A new reply of a model."""
        fingerprint = system_fingerprint(info.name, info.config_hash, *info.all_digests)
        return cls(id, int(time.time()), info.name, fingerprint)


class TextReply(Reply):
    """A generation as one of OpenAI's answers, which its shape writes."""

    chunk_type: ClassVar[type[msgspec.Struct]]

    def __init__(
        self,
        head: ReplyHead,
        generation: Generation,
        options: StreamOptions | None,
        shape: Shape | None,
    ) -> None:
        super().__init__(generation, shape)
        self.head = asdict(head)
        self.generation = generation
        self._usage_at_end = bool(options and options.include_usage)
        self._usage_always = bool(options and options.continuous_usage_stats)

    @property
    def may_be_refused(self) -> bool:
        return self.generation.has_structure

    async def whole(self) -> bytes:
        sums = [DeltaSum() for _ in range(self.generation.num_choices)]
        is_begun = False
        async with aclosing(self.generation.deltas()) as deltas:
            async for delta in deltas:
                if not is_begun:
                    self._shape.begin()
                    is_begun = True
                self._take_logprobs(delta)
                sums[delta.index].add(delta)
        wholes = [each.whole() for each in sums]
        return self._shape.whole(await self._complete(await self._answer(wholes)))

    async def events(self) -> AsyncGenerator[bytes, None]:
        opened: set[int] = set()
        async with aclosing(self.generation.deltas()) as deltas:
            async for delta in deltas:
                chunks = self._chunks(delta)
                if not opened:
                    self._shape.begin()
                if delta.index not in opened:
                    opened.add(delta.index)
                    await self._prepare(delta.index)
                    chunks = [*self._opening(delta.index), *chunks]
                data = b"".join([self._shape.chunk(chunk) for chunk in chunks])
                if data:
                    yield data
        if self._usage_at_end:
            yield self._shape.chunk(self._chunk(usage=self._usage()))

    def log_fields(self) -> dict[str, Any]:
        usage = self.generation.usage()
        fields: dict[str, Any] = {
            "num_prompt_tokens": usage.prompt_tokens,
            "num_cached_tokens": usage.prompt_tokens_details.cached_tokens,
            "num_generation_tokens": usage.completion_tokens,
        }
        if self.generation.keeps_text:
            fields["answers"] = [c.text for run in self.generation.runs for c in run.choices]
        return fields

    @abstractmethod
    def _take_logprobs(self, delta: Delta) -> None:
        """Keep a delta's log-probabilities in the form of a whole reply, and remove them from the
        delta."""

    @abstractmethod
    async def _answer(self, wholes: list[Delta]) -> Any:
        """The body of a whole reply, made from each choice's joined deltas."""

    async def _complete(self, answer: Any) -> Any:
        """The body, completed with what can only be computed from all of it."""
        return answer

    async def _prepare(self, index: int) -> None:
        """Prepare for a choice's first chunk or its whole text."""
        return

    @abstractmethod
    def _opening(self, index: int) -> list[Any]:
        """The chunks that come before a choice's text."""

    @abstractmethod
    def _chunks(self, delta: Delta) -> list[Any]:
        """A delta's chunks; none while its text is held back."""

    def _chunk(self, *choices: Any, usage: Usage | msgspec.UnsetType = msgspec.UNSET) -> Any:
        """A chunk with these choices. The one that ends a stream has the usage and no choices."""
        usage_so_far = self._usage_so_far() if usage is msgspec.UNSET else usage
        return self.chunk_type(**self.head, choices=list(choices), usage=usage_so_far)

    def _usage_so_far(self) -> Usage | msgspec.UnsetType | None:
        """A chunk's `usage`: absent, null until the last chunk, or the numbers so far."""
        if not self._usage_at_end:
            return msgspec.UNSET
        return self._usage() if self._usage_always else None

    def _usage(self) -> Usage:
        return self.generation.usage()
