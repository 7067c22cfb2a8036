"""Answers in Anthropic's form: a message of blocks, or events that build it."""

from collections.abc import Sequence
from typing import Any

from engine.errors import Overflow
from server.dialects.anthropic.convert import OWN_NAMES
from server.http.errors import ErrorFacts, error_facts, renamed
from server.http.shape import Shape, encode
from server.http.sse import Framing, named_event
from server.protocol.answers import Usage
from server.protocol.chat import ChatChunk, ChatCompletion, MessageDelta
from server.protocol.tools import FunctionDelta, read_arguments
from server.text.cache_marks import CacheMark

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

Block = dict[str, Any]


def error_shape(facts: ErrorFacts) -> bytes:
    """A failure in Anthropic's form: `{"type": "error", "error": {type, message}}`."""
    fallback = "api_error" if facts.status >= 500 else "invalid_request_error"
    error: Block = {
        "type": _TYPES.get(facts.status, fallback),
        "message": _too_long(facts.overflow) or renamed(facts, OWN_NAMES).message,
    }
    if facts.param == "thread":
        # Anthropic's client reads this and then sends whole conversations.
        error["details"] = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    return encode({"type": "error", "error": error})


def _too_long(overflow: Overflow | None) -> str:
    """The message about a prompt that is too long, in Anthropic's words: clients read its numbers
    and shorten the conversation by them."""
    if overflow is None:
        return ""
    num_tokens, most = overflow.num_prompt_tokens, overflow.max_model_len
    if num_tokens > most:
        return f"prompt is too long: {num_tokens} tokens > {most} maximum"
    return (
        f"input length and `max_tokens` exceed context limit: {num_tokens} + "
        f"{overflow.num_asked_tokens} > {most}, decrease input length or `max_tokens` and try again"
    )


FRAMING = Framing(
    media_type="text/event-stream",
    done=b"",
    ping=named_event("ping", b'{"type":"ping"}'),
    failure=lambda error: named_event("error", error_shape(error_facts(error))),
)


class MessageShape(Shape):
    """The form of one message."""

    framing = FRAMING

    def __init__(self, marks: Sequence[CacheMark] = ()) -> None:
        self._marks = marks
        self._num_blocks = 0
        self._open: str | None = None
        """Type of the block that is being written."""
        self._has_begun = False
        self._end: Block = {}

    def whole(self, answer: ChatCompletion) -> bytes:
        [choice] = answer.choices
        message = choice.message
        blocks: list[Block] = []
        if reasoning := message.reasoning_content:
            blocks.append(_block("thinking") | {"thinking": reasoning})
        if message.content:
            blocks.append(_block("text") | {"text": message.content})
        for call in message.tool_calls or ():
            tool_use: Block = {"id": call.id, "name": call.function.name}
            # It is empty if the text was cut off.
            tool_use["input"] = read_arguments(call.function.arguments) or {}
            blocks.append(_block("tool_use") | tool_use)
        end = _end_of(choice.finish_reason, choice.stop_reason)
        return encode(_message(answer, blocks) | end | {"usage": self._usage(answer.usage)})

    def chunk(self, chunk: ChatChunk) -> bytes:
        data = b""
        usage = chunk.usage
        assert isinstance(usage, Usage)
        if not self._has_begun:
            self._has_begun = True
            begun = _message(chunk, []) | {"stop_reason": None, "stop_sequence": None}
            counted = self._usage(usage) | {"output_tokens": 0}
            data = _event("message_start", message=begun | {"usage": counted})
        if not chunk.choices:
            ended = _event("message_delta", delta=self._end, usage=self._usage(usage))
            return data + ended + _event("message_stop")
        [choice] = chunk.choices
        data += self._added(choice.delta)
        if choice.finish_reason is not None:
            self._end = _end_of(choice.finish_reason, choice.stop_reason)
            data += self._close_block()
        return data

    def _usage(self, usage: Usage) -> Block:
        """Anthropic's usage: of the prompt's tokens, those that were cached, then those up to the
        last mark, then the others. OpenAI counts all together."""
        cached = usage.prompt_tokens_details.cached_tokens
        ends = {mark.seconds: mark.num_tokens for mark in self._marks}
        hour, last = (
            max(0, end - cached) for end in (ends.get(3600, 0), max(ends.values(), default=0))
        )
        counts: Block = {
            "input_tokens": usage.prompt_tokens - cached - last,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": last,
            "output_tokens": usage.completion_tokens,
        }
        if self._marks:
            counts["cache_creation"] = {
                "ephemeral_5m_input_tokens": last - hour,
                "ephemeral_1h_input_tokens": hour,
            }
        return counts

    def _added(self, delta: MessageDelta) -> bytes:
        """The events of a chunk. More of an unfinished call comes first, new calls come last."""
        data = b""
        calls = [(call, call.function) for call in delta.tool_calls or () if call.function]
        for call, function in calls:
            if call.id is None:
                data += self._arguments(function)
        if delta.reasoning_content:
            data += self._open_block("thinking")
            data += self._delta({"type": "thinking_delta", "thinking": delta.reasoning_content})
        if delta.content:
            data += self._open_block("text")
            data += self._delta({"type": "text_delta", "text": delta.content})
        for call, function in calls:
            if call.id is not None:
                data += self._close_block()
                data += self._open_block("tool_use", id=call.id, name=function.name)
                data += self._arguments(function)
        return data

    def _arguments(self, function: FunctionDelta) -> bytes:
        if not function.arguments:
            return b""
        return self._delta({"type": "input_json_delta", "partial_json": function.arguments})

    def _open_block(self, kind: str, **fields: Any) -> bytes:
        if self._open == kind:
            return b""
        closed = self._close_block()
        self._open = kind
        block = _block(kind) | fields
        return closed + _event("content_block_start", index=self._num_blocks, content_block=block)

    def _close_block(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        self._num_blocks += 1
        return _event("content_block_stop", index=self._num_blocks - 1)

    def _delta(self, delta: Block) -> bytes:
        return _event("content_block_delta", index=self._num_blocks, delta=delta)


def _event(kind: str, **fields: Any) -> bytes:
    return named_event(kind, encode({"type": kind, **fields}))


def _message(answer: Any, content: list[Block]) -> Block:
    return {
        "id": f"msg_{answer.id.removeprefix('chatcmpl-')}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
    }


def _block(kind: str) -> Block:
    """An empty block."""
    match kind:
        case "text":
            return {"type": kind, "text": ""}
        case "thinking":
            return {"type": kind, "thinking": "", "signature": ""}
    return {"type": kind, "input": {}}


def _end_of(finish_reason: str, stop_reason: Any) -> Block:
    if finish_reason == "stop" and isinstance(stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stop_reason}
    reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
    return {"stop_reason": reasons.get(finish_reason, "end_turn"), "stop_sequence": None}
