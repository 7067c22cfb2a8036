"""Answers in Ollama's form: a JSON object, or a line for each part of it."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from server.dialects.ollama.convert import OWN_NAMES
from server.http.errors import ErrorFacts, error_facts, renamed
from server.http.shape import Shape, encode
from server.http.sse import Framing
from server.protocol.answers import Usage
from server.protocol.chat import ChatChunk, ChatCompletion, ChatLogprobs
from server.protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
)
from server.protocol.tools import ToolCallDelta, read_arguments


def error_shape(facts: ErrorFacts) -> bytes:
    """A failure in Ollama's form: `{"error": "..."}`."""
    return encode({"error": renamed(facts, OWN_NAMES).message})


def line(answer: Any) -> bytes:
    """A line of a stream."""
    return encode(answer) + b"\n"


LINES = Framing(
    media_type="application/x-ndjson",
    done=b"",
    ping=b"",  # clients read every line as JSON
    failure=lambda error: error_shape(error_facts(error)) + b"\n",
)


class Message(msgspec.Struct, omit_defaults=True):
    """The assistant's message, or a part of it."""

    content: str
    thinking: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    role: str = msgspec.field(default_factory=lambda: "assistant")


class Part(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A line of a stream. It has either `message` or `response`, depending on the route; the other
    fields are in the last line."""

    model: str
    created_at: str
    message: Message | None = None
    response: str | None = None
    thinking: str | None = None
    logprobs: Any = None
    done: bool
    done_reason: str | None = None
    total_duration: int | None = None
    """Nanoseconds, as in all durations."""
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class OllamaShape(Shape):
    """The form of one reply to `/api/chat` (`message`) or `/api/generate` (`response`).

    Args:
        model: the model's name as the client wrote it.
    """

    framing = LINES

    def __init__(self, model: str, holds: Literal["message", "response"]) -> None:
        self._model = model
        self._holds = holds
        self._start_ns = time.perf_counter_ns()
        self._first_ns = self._start_ns
        self._end: str | None = None
        self._called: dict[int, tuple[str, str]] = {}

    def begin(self) -> None:
        self._first_ns = time.perf_counter_ns()

    def whole(self, answer: ChatCompletion | Completion) -> bytes:
        [choice] = answer.choices
        if isinstance(choice, CompletionChoice):
            part = self._part(choice.text)
        else:
            message = choice.message
            part = self._part(message.content or "", choice.logprobs)
            pieces = [
                (call.function.name, call.function.arguments) for call in message.tool_calls or ()
            ]
            self._add(part, message.reasoning_content, _calls(pieces))
        return encode(self._ended(part, choice.finish_reason, answer.usage))

    def chunk(self, chunk: ChatChunk | CompletionChunk) -> bytes:
        if isinstance(chunk.usage, Usage):
            part = self._part("")
            self._add(part, None, _calls([*self._called.values()]))
            return line(self._ended(part, self._end, chunk.usage))
        [choice] = chunk.choices
        self._end = choice.finish_reason or self._end
        if isinstance(choice, CompletionChunkChoice):
            return line(self._part(choice.text)) if choice.text else b""
        delta = choice.delta
        for piece in delta.tool_calls or ():
            self._collect(piece)
        if not delta.content and not delta.reasoning_content and choice.logprobs is None:
            return b""
        part = self._part(delta.content or "", choice.logprobs)
        self._add(part, delta.reasoning_content, [])
        return line(part)

    def _part(self, text: str, logprobs: ChatLogprobs | None = None) -> Part:
        part = Part(model=self._model, created_at=now(), done=False)
        if self._holds == "message":
            part.message = Message(text)
        else:
            part.response = text
        if logprobs is not None:
            part.logprobs = logprobs.content
        return part

    def _add(self, part: Part, thinking: str | None, calls: list[dict[str, Any]]) -> None:
        if part.message is None:
            part.thinking = thinking or None
        else:
            part.message.thinking = thinking or None
            part.message.tool_calls = calls or None

    def _ended(self, part: Part, reason: str | None, usage: Usage) -> Part:
        end_ns = time.perf_counter_ns()
        part.done = True
        part.done_reason = "length" if reason == "length" else "stop"
        part.total_duration = end_ns - self._start_ns
        part.load_duration = 0
        part.prompt_eval_count = usage.prompt_tokens
        part.prompt_eval_duration = self._first_ns - self._start_ns
        part.eval_count = usage.completion_tokens
        part.eval_duration = end_ns - self._first_ns
        return part

    def _collect(self, piece: ToolCallDelta) -> None:
        """Collect a call, which Ollama sends whole; OpenAI's come in pieces."""
        name, arguments = self._called.get(piece.index, ("", ""))
        if piece.function is not None:
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
        self._called[piece.index] = (name, arguments)


def loaded(model: str, holds: Literal["message", "response"], reason: str) -> bytes:
    """Ollama's answer to a request that only loads or unloads a model."""
    part = Part(model=model, created_at=now(), done=True, done_reason=reason)
    if holds == "message":
        part.message = Message("")
    else:
        part.response = ""
    return encode(part)


def now() -> str:
    return timestamp(time.time())


def timestamp(unix_s: float) -> str:
    """A time in the form of RFC 3339, in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")


def _calls(pieces: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Calls with their arguments as objects, as in Ollama's API. A call whose arguments were cut
    off is left out."""
    calls = []
    for name, text in pieces:
        arguments = read_arguments(text)
        if arguments is not None:
            calls.append({"function": {"name": name, "arguments": arguments}})
    return calls
