"""Turns pieces of an answer into OpenAI's message, whole or as a chunk's delta."""

import uuid
from collections.abc import Sequence

import msgspec

from engine.text.answer_pieces import Arguments, CallStart, Content, Piece, Reasoning
from server.protocol.chat import AnswerMessage, MessageDelta
from server.protocol.tools import AnswerToolCall, CalledFunction, FunctionDelta, ToolCallDelta


def new_call_id() -> str:
    """A new call id in OpenAI's form."""
    return f"call_{uuid.uuid4().hex[:24]}"


def whole_message(pieces: Sequence[Piece], prefix: str) -> AnswerMessage:
    """The message of all pieces; its text begins with `prefix`."""
    content, reasoning = prefix, ""
    calls: list[AnswerToolCall] = []
    for piece in pieces:
        match piece:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
            case CallStart(_, name):
                calls.append(AnswerToolCall(new_call_id(), CalledFunction(name, "")))
            case Arguments(index, text):
                calls[index].function.arguments += text
    return AnswerMessage(
        content=content or (None if calls or reasoning else ""),
        reasoning_content=reasoning or None,
        reasoning=reasoning or None,
        tool_calls=calls or None,
    )


def message_delta(pieces: Sequence[Piece]) -> MessageDelta:
    """The message delta that these pieces add."""
    content = "".join([piece.text for piece in pieces if isinstance(piece, Content)])
    reasoning = "".join([piece.text for piece in pieces if isinstance(piece, Reasoning)])
    calls: dict[int, ToolCallDelta] = {}
    for piece in pieces:
        match piece:
            case CallStart(index, name):
                function = FunctionDelta(name, "")
                calls[index] = ToolCallDelta(index, new_call_id(), "function", function)
            case Arguments(index, text):
                call = calls.setdefault(index, ToolCallDelta(index, function=FunctionDelta()))
                assert call.function is not None
                call.function.arguments = (call.function.arguments or "") + text
    return MessageDelta(
        content=content or msgspec.UNSET,
        reasoning_content=reasoning or None,
        reasoning=reasoning or None,
        tool_calls=list(calls.values()) or None,
    )
