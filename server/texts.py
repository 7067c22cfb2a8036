"""The text side of each served model: its tokenizer and chat template, loaded once.

Small inputs are handled at once; long ones in a thread, so that a book-sized prompt does not hold
up every other stream of the process. Chat templates run in processes of their own.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import InvalidParameter
from engine.text.template_process import TemplateProcess
from engine.text.tokenizer import Tokenizer, load_tokenizer
from engine.types import ModelInfo

THREAD_THRESHOLD_CHARS = 16_384
"""About 2 ms of tokenising; a thread costs 0.1 ms."""

_CHARS_PER_TOKEN = 4

T = TypeVar("T")


class ModelText:
    """Tokenizer and chat template of one model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        source = tokenizer.chat_template
        self._template = TemplateProcess(source, tokenizer.special_tokens) if source else None
        self._token_texts: dict[int, str] = {}
        self._token_bytes: dict[int, list[int]] = {}

    @classmethod
    async def load(cls, path: Path) -> "ModelText":
        """Read the tokenizer and compile the template.

        Raises:
            ModelLoadError: their files are missing or broken.
        """
        text = cls(await asyncio.to_thread(load_tokenizer, path))
        if text._template is not None:
            try:
                await text._template.start()
            except BaseException:
                text.close()
                raise
        return text

    def close(self) -> None:
        """End what belongs to it outside of this process. Idempotent."""
        if self._template is not None:
            self._template.close()

    async def encode_all(
        self, texts: Sequence[str], *, add_special_tokens: bool
    ) -> list[list[int]]:
        """Token ids of each text."""

        def encode() -> list[list[int]]:
            return [self.tokenizer.encode(t, add_special_tokens=add_special_tokens) for t in texts]

        return await _run(encode, sum(map(len, texts)))

    async def encode_chat(
        self,
        messages: list[dict[str, Any]],
        options: Mapping[str, Any],
        *,
        add_special_tokens: bool,
    ) -> list[int]:
        """Token ids of a conversation; `options` are those of `ChatTemplate.render`.

        Raises:
            InvalidParameter: the model has no chat template, or it refuses these messages.
            ChatTemplateFailed, QueueFull: as in `TemplateProcess.render`.
        """
        template = self._template
        if template is None:
            raise InvalidParameter(
                "this model has no chat template; use /v1/completions", param="messages"
            )

        text = await template.render(messages, options)

        def encode() -> list[int]:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

        return await _run(encode, len(text))

    async def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of whole token ids; for streams there is `IncrementalDetokenizer`."""

        def decode() -> str:
            return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

        return await _run(decode, len(token_ids) * _CHARS_PER_TOKEN)

    def vocabulary_entries(self, token_ids: Sequence[int]) -> list[str]:
        """How the vocabulary spells each token; empty for ids that only the model has."""
        return [self.tokenizer.raw.id_to_token(token_id) or "" for token_id in token_ids]

    def token_text(self, token_id: int) -> str:
        """Text of one token alone. Kept, since log-probabilities ask for the same few often."""
        text = self._token_texts.get(token_id)
        if text is None:
            text = self._token_texts[token_id] = self.tokenizer.token_text(token_id)
        return text

    def token_bytes(self, token_id: int) -> list[int]:
        """Its bytes, as JSON writes them."""
        octets = self._token_bytes.get(token_id)
        if octets is None:
            octets = self._token_bytes[token_id] = list(self.tokenizer.token_bytes(token_id))
        return octets


class TextRegistry:
    """Loads the text side of a model when it is first asked for. Event loop only."""

    def __init__(self) -> None:
        self._loads: dict[str, asyncio.Task[ModelText]] = {}

    async def get(self, info: ModelInfo) -> ModelText:
        """The model's text side; concurrent callers wait for one load.

        Raises:
            ModelLoadError: tokenizer files are missing or broken. The next call tries again.
        """
        load = self._loads.get(info.path)
        if load is None:
            load = asyncio.create_task(ModelText.load(Path(info.path)))
            self._loads[info.path] = load
        if load.done() and load.exception() is None:
            return load.result()
        try:
            # Shielded: a client that leaves must not cancel the load for those who wait with it.
            return await asyncio.shield(load)
        except Exception:
            self._loads.pop(info.path, None)
            raise

    async def aclose(self) -> None:
        """End what the models' texts have outside of this process. Idempotent."""
        loads = list(self._loads.values())
        self._loads.clear()
        for load in loads:
            load.cancel()
        for text in await asyncio.gather(*loads, return_exceptions=True):
            if isinstance(text, ModelText):
                text.close()


async def _run(work: Callable[[], T], size: int) -> T:
    """Do the work here if it is small, `size` in characters, else in a thread."""
    return work() if size < THREAD_THRESHOLD_CHARS else await asyncio.to_thread(work)
