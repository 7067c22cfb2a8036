"""Answers of `/completion`, `/infill` and `/embedding`."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from server.embeddings.answers import plain_embeddings
from server.embeddings.convert import Embedded
from server.http.shape import Shape, encode
from server.http.sse import OPENAI_FRAMING, event
from server.protocol.answers import Usage
from server.protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogprobs,
)
from server.text.texts import ModelText

_ID = "token_id:"


async def embeddings_answer(embedded: Embedded) -> bytes:
    """The answer of `/embedding`. Each text has an array of embeddings: one here, as in
    llama-server with pooling."""
    written = await plain_embeddings(embedded)
    return encode([{"index": index, "embedding": [one]} for index, one in enumerate(written)])


class LlamaShape(Shape):
    """The form of one reply.

    Args:
        asked: fields of the request, which the answer repeats.
    """

    framing = replace(OPENAI_FRAMING, done=b"")

    def __init__(self, text: ModelText, prompt: str, asked: Mapping[str, Any]) -> None:
        self._text = text
        self._prompt = prompt
        self._asked = asked
        self._start_s = self._first_s = time.perf_counter()
        self._ended: CompletionChoice | CompletionChunkChoice | None = None
        self._has_new_line = False

    def begin(self) -> None:
        self._first_s = time.perf_counter()

    def whole(self, answer: Completion) -> bytes:
        [choice] = answer.choices
        self._ended = choice
        part = self._part(choice)
        return encode(part | self._end(answer.model, answer.usage))

    def chunk(self, chunk: CompletionChunk) -> bytes:
        if isinstance(chunk.usage, Usage):
            last = {"index": 0, "content": "", "tokens": []}
            return event(encode(last | self._end(chunk.model, chunk.usage)))
        [choice] = chunk.choices
        if choice.finish_reason is not None:
            self._ended = choice
        part = self._part(choice)
        if not part["content"] and not part["tokens"]:
            return b""
        return event(encode(part | {"stop": False}))

    def _part(self, choice: CompletionChoice | CompletionChunkChoice) -> dict[str, Any]:
        self._has_new_line |= "\n" in choice.text
        token_ids = choice.token_ids if isinstance(choice.token_ids, list) else []
        part = {"index": 0, "content": choice.text, "tokens": token_ids}
        if choice.logprobs is not None:
            part["completion_probabilities"] = self._probabilities(choice.logprobs)
        return part

    def _probabilities(self, logprobs: CompletionLogprobs) -> list[dict[str, Any]]:
        return [
            self._token(name, logprob or 0.0)
            | {"top_logprobs": [self._token(*one) for one in (top or {}).items()]}
            for name, logprob, top in zip(
                logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
            )
        ]

    def _token(self, name: str, logprob: float) -> dict[str, Any]:
        token_id = int(name.removeprefix(_ID))
        return {
            "id": token_id,
            "token": self._text.token_text(token_id),
            "bytes": self._text.token_bytes(token_id),
            "logprob": logprob,
        }

    def _end(self, model: str, usage: Usage) -> dict[str, Any]:
        ended = self._ended
        word = ended.stop_reason if ended and isinstance(ended.stop_reason, str) else ""
        by_length = ended is not None and ended.finish_reason == "length"
        return {
            "id_slot": 0,
            "stop": True,
            "model": model,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "generation_settings": self._asked,
            "prompt": self._prompt,
            "has_new_line": self._has_new_line,
            "truncated": False,
            "stop_type": "word" if word else "limit" if by_length else "eos",
            "stopping_word": word,
            "tokens_cached": usage.prompt_tokens + usage.completion_tokens,
            "timings": self._timings(usage),
        }

    def _timings(self, usage: Usage) -> dict[str, float]:
        """Times by llama-server's names; for the prompt, only tokens that were not in the cache
        count."""
        num_cached = usage.prompt_tokens_details.cached_tokens
        num_read, num_written = usage.prompt_tokens - num_cached, usage.completion_tokens
        prompt_ms = (self._first_s - self._start_s) * 1e3
        predicted_ms = (time.perf_counter() - self._first_s) * 1e3
        return {
            "cache_n": num_cached,
            "prompt_n": num_read,
            "prompt_ms": prompt_ms,
            "prompt_per_token_ms": prompt_ms / max(num_read, 1),
            "prompt_per_second": num_read / max(prompt_ms / 1e3, 1e-6),
            "predicted_n": num_written,
            "predicted_ms": predicted_ms,
            "predicted_per_token_ms": predicted_ms / max(num_written, 1),
            "predicted_per_second": num_written / max(predicted_ms / 1e3, 1e-6),
        }
