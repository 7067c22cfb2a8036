"""The text side of each served model: its tokenizer and chat template, loaded once.

Small inputs are handled at once. Long ones are refused by their characters if they cannot fit;
otherwise they are tokenised part by part in threads, so that a book-sized prompt does not hold up
every other stream of the process. Chat templates run in processes of their own.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from engine.contract.request import Info
from engine.contract.sampling_params import Patterns
from engine.contract.settings import EngineConfig
from engine.errors import InvalidParameter
from engine.text.chat_format import ChatFormat
from engine.text.long_text import LongText
from engine.text.template_process import TemplateProcess
from engine.text.tokenizer import Tokenizer, load_tokenizer
from engine.text.vocabulary_search import VocabularySearch
from server.http.turns import in_turns
from server.text.encoding_pool import EncodingPool
from server.text.picture_rows import PictureRows
from server.text.prompt_limit import PromptLimit

THREAD_THRESHOLD_CHARS = 16_384
"""Texts from this length on are tokenised in a thread. That many characters take about 2 ms; a
thread costs 0.1 ms."""

_CHARS_PER_TOKEN = 4
_KEPT_PATTERNS = 32
_WORD_CHARS = 100
"""Characters that take as long to tokenise as a word on its own."""
_TEMPLATE_LEAVES = 4
_PROMPT_END_TOKENS = 16
_COUNTED_CHARS = 4096
"""Shorter texts are tokenised whatever their limit, so that an error can give the exact number."""

_SMALL = PromptLimit(
    4096,
    4096,
    lambda num_tokens, _: InvalidParameter(
        f"the text has {num_tokens} tokens; the limit is 4096; send a shorter text"
    ),
    "prompt",
)
"""The limit for callers without a request."""

log = structlog.get_logger(__name__)


class ModelText:
    """The tokenizer and the chat template of one model."""

    def __init__(self, tokenizer: Tokenizer, pool: EncodingPool) -> None:
        self.tokenizer = tokenizer
        self._pool = pool
        self._long = LongText(tokenizer)
        source = tokenizer.chat_template
        self._template = TemplateProcess(source, tokenizer.special_tokens) if source else None
        self._token_texts: dict[int, str] = {}
        self._token_bytes: dict[int, list[int]] = {}
        self._search: VocabularySearch | None = None
        self._patterns: dict[tuple[str, ...], Patterns] = {}
        self._formats: dict[tuple[str, str], ChatFormat] = {}

    @classmethod
    async def load(cls, path: Path, pool: EncodingPool) -> "ModelText":
        """Read the tokenizer and compile the template.

        Raises:
            ModelLoadError: their files are missing or broken.
        """
        text = await asyncio.to_thread(lambda: cls(load_tokenizer(path), pool))
        if not text._long.bound.is_known:
            # The operator cannot change this, and embedding models have a bound of their own.
            log.debug("this tokenizer gives no limit for a text's tokens by its characters")
        if text._template is not None:
            try:
                await text._template.start()
            except BaseException:
                text.close()
                raise
        return text

    def close(self) -> None:
        """End the processes that belong to this text side. Idempotent."""
        if self._template is not None:
            self._template.close()

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def num_added_tokens(self) -> int:
        """Number of tokens that `add_special_tokens` puts around a text."""
        return len(self._long.prefix) + len(self._long.suffix)

    @property
    def tokens_before(self) -> Sequence[int]:
        """The tokens that it puts before a text, such as begin-of-text."""
        return self._long.prefix

    def chat_format(self, config: EngineConfig) -> ChatFormat:
        """The syntax of calls and reasoning, from the template and the operator's settings."""
        key = (config.tool_call_parser, config.reasoning_parser)
        if key not in self._formats:
            self._formats[key] = ChatFormat.of(self.tokenizer.chat_template or "", *key)
        return self._formats[key]

    def end_of(self, prompt: Sequence[int]) -> str:
        """The text of a prompt's last tokens, which shows whether it has opened the reasoning."""
        return self.tokenizer.decode(prompt[-_PROMPT_END_TOKENS:], skip_special_tokens=False)

    def special_ids(self, texts: Sequence[str]) -> frozenset[int]:
        """Ids of the special tokens that are spelled like one of these texts."""
        ids = {self.tokenizer.raw.token_to_id(text) for text in texts}
        return self.tokenizer.special_token_ids & ids

    async def encode_all(
        self,
        texts: Sequence[str],
        *,
        add_special_tokens: bool,
        limit: PromptLimit | None = None,
    ) -> list[list[int]]:
        """Token ids of each text. With `keep_last` only its last ones are kept, with `cuts_end`
        only its first ones.

        Raises:
            EngineError: a text, or all of them together, are too long; `limit` makes the error.
            InvalidParameter: a text has a stretch that is too long to tokenise in parts.
            QueueFull: too many long texts are being tokenised.
        """
        limit = limit or _SMALL
        await self._check_lengths(texts, limit)
        if sum(map(len, texts)) < THREAD_THRESHOLD_CHARS:
            suffix = self._long.suffix if add_special_tokens else []
            return [
                _without_end(
                    self.tokenizer.encode(text, add_special_tokens=add_special_tokens),
                    suffix,
                    limit,
                )
                for text in texts
            ]
        prompts, num_tokens = [], 0
        with self._pool.place():
            for index, text in enumerate(texts):
                prompts.append(await self._encode_long(text, index, add_special_tokens, limit))
                num_tokens += len(prompts[-1])
                if num_tokens > limit.max_total_tokens:
                    raise limit.total_exceeded(num_tokens)
        return prompts

    async def encode_chat(
        self,
        messages: list[dict[str, Any]],
        options: Mapping[str, Any],
        *,
        add_special_tokens: bool,
        limit: PromptLimit | None = None,
        pictures: PictureRows | None = None,
    ) -> list[int]:
        """Token ids of a conversation; `options` are those of `ChatTemplate.render`.

        Args:
            pictures: the pictures of the messages, if the model sees pictures.

        Raises:
            InvalidParameter: the model has no chat template, or it refuses these messages, or the
                text of a message stands for a picture.
            ChatTemplateFailed, QueueFull: as in `TemplateProcess.render`.
            EngineError: as in `encode_all`.
        """
        template = self._template
        if template is None:
            raise InvalidParameter(
                "this model has no chat template; use /v1/completions", param="messages"
            )
        limit = limit or _SMALL
        await self._check_conversation(messages, options.get("tools"), limit)
        if pictures is not None:
            limit = pictures.reduced(limit)
        text = await template.render(messages, options)
        if pictures is not None:
            text = pictures.inserted(text)
        [prompt] = await self.encode_all([text], add_special_tokens=add_special_tokens, limit=limit)
        return prompt if pictures is None else pictures.expanded(prompt)

    async def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of complete token ids; for streams there is `IncrementalDetokenizer`.

        Raises:
            QueueFull: too many long texts are being processed.
        """

        def decode() -> str:
            return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

        if len(token_ids) * _CHARS_PER_TOKEN < THREAD_THRESHOLD_CHARS:
            return decode()
        with self._pool.place():
            return await self._pool.run(decode)

    async def patterns(self, strings: Mapping[str, tuple[str, ...]]) -> dict[str, Patterns]:
        """The patterns of tokens that spell each entry's strings. The latest ones are kept.

        Raises:
            QueueFull: too many long texts are being processed.
        """
        found = {}
        for name, some in strings.items():
            patterns = self._patterns.pop(some, None)
            if patterns is None:
                with self._pool.place():
                    patterns = await self._pool.run(partial(self._find_patterns, some))
            self._patterns[some] = found[name] = patterns
            if len(self._patterns) > _KEPT_PATTERNS:
                del self._patterns[next(iter(self._patterns))]
        return found

    async def words(self, words: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """The token ids of each word on its own, without those that the tokenizer drops.

        Raises:
            QueueFull: too many long texts are being processed.
        """

        def encode() -> dict[str, tuple[int, ...]]:
            return {
                word: tuple(self.tokenizer.encode(word, add_special_tokens=False))
                for word in dict.fromkeys(words)
            }

        if sum(map(len, words)) + len(words) * _WORD_CHARS < THREAD_THRESHOLD_CHARS:
            return encode()
        with self._pool.place():
            return await self._pool.run(encode)

    def _find_patterns(self, strings: tuple[str, ...]) -> Patterns:
        """Search the vocabulary; runs in a thread."""
        if self._search is None:
            self._search = VocabularySearch(self.tokenizer)
        return self._search.patterns(strings)

    async def _check_lengths(self, texts: Sequence[str], limit: PromptLimit) -> None:
        """Refuse texts that cannot fit, before any of them is tokenised."""
        if limit.keep_last is not None or limit.cuts_end:
            return
        num_tokens = 0
        for index, text in enumerate(texts):
            if len(text) < _COUNTED_CHARS:
                continue
            at_least = await self._at_least(text, limit.max_tokens)
            if at_least > limit.max_tokens:
                raise limit.exceeded(at_least, index)
            num_tokens += at_least
        if num_tokens > limit.max_total_tokens:
            raise limit.total_exceeded(num_tokens)

    async def _check_conversation(
        self, messages: list[dict[str, Any]], tools: Any, limit: PromptLimit
    ) -> None:
        """Refuse messages and tools that cannot fit. A template may leave some of them out, but
        hardly three quarters."""
        if limit.keep_last is None and self._long.bound.is_known:
            most = _TEMPLATE_LEAVES * limit.max_tokens
            text = "".join([text for message in messages for text in _texts(message)])
            text += msgspec.json.encode(tools).decode() if tools else ""
            at_least = await self._at_least(text, most)
            if at_least > most:
                raise limit.exceeded(at_least, 0)

    async def _at_least(self, text: str, enough: int) -> int:
        found = await in_turns(int, self._long.bound.growing(text, enough))
        return max(found, default=0)

    async def _encode_long(
        self, text: str, index: int, add_special_tokens: bool, limit: PromptLimit
    ) -> list[int]:
        prefix, suffix = (self._long.prefix, self._long.suffix) if add_special_tokens else ([], [])
        if limit.keep_last is None:
            most = limit.max_tokens - len(prefix) - len(suffix)
            token_ids = []
            for part in self._long.parts(text, limit.max_tokens):
                token_ids += await self._pool.run(partial(self._long.encode, part))
                if len(token_ids) > most and limit.cuts_end:
                    del token_ids[most:]
                    break
                if len(token_ids) > most:
                    num_tokens = len(token_ids) + len(prefix) + len(suffix)
                    raise limit.exceeded(num_tokens, index)
            return [*prefix, *token_ids, *suffix]
        for start in self._long.tails(text, limit.keep_last, limit.max_tokens):
            token_ids = []
            for part in self._long.parts(text, limit.max_tokens, start):
                token_ids += await self._pool.run(partial(self._long.encode, part))
                del token_ids[: -limit.keep_last]
            if start == 0 or len(token_ids) + len(suffix) >= limit.keep_last:
                break
        return [*prefix, *token_ids, *suffix][-limit.keep_last :]

    def vocabulary_entries(self, token_ids: Sequence[int]) -> list[str]:
        """The vocabulary's spelling of each token; empty for ids that only the model has."""
        return [self.tokenizer.raw.id_to_token(token_id) or "" for token_id in token_ids]

    def token_text(self, token_id: int) -> str:
        """The text of a single token. It is kept, because log-probabilities often ask for the same
        few tokens."""
        text = self._token_texts.get(token_id)
        if text is None:
            text = self._token_texts[token_id] = self.tokenizer.token_text(token_id)
        return text

    def token_bytes(self, token_id: int) -> list[int]:
        """A token's bytes, as JSON writes them."""
        octets = self._token_bytes.get(token_id)
        if octets is None:
            octets = self._token_bytes[token_id] = list(self.tokenizer.token_bytes(token_id))
        return octets


class TextRegistry:
    """Loads the text side of a model on its first use. Event loop only."""

    def __init__(self, pool: EncodingPool) -> None:
        self._pool = pool
        self._loads: dict[str, asyncio.Task[ModelText]] = {}

    async def get(self, info: Info) -> ModelText:
        """The model's text side; concurrent callers wait for one load.

        Raises:
            ModelLoadError: tokenizer files are missing or broken. The next call tries again.
        """
        return await self.load(info.path)

    async def load(self, path: str) -> ModelText:
        """The text side of a model that is not ready yet, by the path of its checkpoint."""
        load = self._loads.get(path)
        if load is None:
            load = asyncio.create_task(ModelText.load(Path(path), self._pool))
            self._loads[path] = load
        if load.done() and load.exception() is None:
            return load.result()
        try:
            # Shielded: a client that leaves must not cancel the load for other waiting clients.
            return await asyncio.shield(load)
        except Exception:
            self._loads.pop(path, None)
            raise

    def discard(self, path: str, text: ModelText) -> None:
        """Forget a text side that does not work."""
        self._loads.pop(path, None)
        text.close()

    def forget(self, path: str) -> None:
        """Forget a text side and end its processes, even if it is still being loaded: its model is
        gone."""
        load = self._loads.pop(path, None)
        if load is not None:
            load.add_done_callback(_close_loaded)
            load.cancel()

    async def aclose(self) -> None:
        """End the processes of all text sides. Idempotent."""
        loads = list(self._loads.values())
        self._loads.clear()
        for load in loads:
            load.cancel()
        for text in await asyncio.gather(*loads, return_exceptions=True):
            if isinstance(text, ModelText):
                text.close()
        self._pool.close()


def _close_loaded(load: asyncio.Task[ModelText]) -> None:
    if not load.cancelled() and load.exception() is None:
        load.result().close()


def _without_end(token_ids: list[int], suffix: list[int], limit: PromptLimit) -> list[int]:
    if not limit.cuts_end or len(token_ids) <= limit.max_tokens:
        return token_ids
    return [*token_ids[: limit.max_tokens - len(suffix)], *suffix]


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    for part in content if isinstance(content, list) else ():
        yield part["text"]
    for call in message.get("tool_calls", ()):
        arguments = call["function"]["arguments"]
        if isinstance(arguments, str):
            yield arguments
