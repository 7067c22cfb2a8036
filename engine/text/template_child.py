"""The process that renders one model's chat template, within limits of time and memory.

`TemplateProcess` starts it as `python -m engine.text.template_child CPU_SECONDS MEMORY_BYTES`. Its
standard input is a socket that both sides write to. Templates are foreign code: the kernel ends
this process if it runs for too long, and nothing else is affected.

The process ends when the socket does. If the server dies, a running template is ended by the limit
of processor time.
"""

import json
import os
import sys
import time
from typing import Any

from engine.errors import EngineError, Failure, InvalidParameter
from engine.processes.process_limits import ignore_group_signals, limit_memory, limit_time
from engine.text.chat_template import ChatTemplate
from engine.text.template_wire import (
    HEADER_BYTES,
    Answer,
    Compile,
    Compiled,
    Question,
    Refused,
    Render,
    Rendered,
    frame_size,
    pack,
    unpack_question,
)

_SOCKET = 0
_READ_BYTES = 1 << 16
_PATIENCE_S = 0.0005
_OUT_OF_MEMORY = pack(
    Refused(
        Failure(
            InvalidParameter.code,
            "the model's chat template needs too much memory for these messages; shorten them",
            "messages",
        ),
        is_last=True,
    )
)
"""The answer for lack of memory, made beforehand because there is none left then."""


def main() -> None:
    """Answer questions until the server hangs up."""
    ignore_group_signals()
    cpu_s, memory_bytes = int(sys.argv[1]), int(sys.argv[2])
    connection = _Connection()
    renderer = Renderer(is_memory_limited=limit_memory(memory_bytes))
    try:
        while (body := connection.read()) is not None:
            limit_time(cpu_s)
            connection.write(renderer.answer(body))
    except MemoryError:
        connection.write(_OUT_OF_MEMORY)
        connection.flush()
    except (BrokenPipeError, ConnectionResetError):
        pass


class _Connection:
    """The frames of the socket. Answers are collected for a moment, because every write wakes the
    server, which may take the processor."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answers = bytearray()
        self._flushed_s = 0.0

    def read(self) -> bytes | None:
        """Return the next frame's body, or None if the server has hung up."""
        while len(self._received) < HEADER_BYTES:
            if not self._fill():
                return None
        end = HEADER_BYTES + frame_size(self._received)
        while len(self._received) < end:
            if not self._fill():
                return None
        body = bytes(self._received[HEADER_BYTES:end])
        del self._received[:end]
        return body

    def write(self, frame: bytes) -> None:
        self._answers += frame
        if time.monotonic() - self._flushed_s > _PATIENCE_S or len(self._answers) > _READ_BYTES:
            self.flush()

    def flush(self) -> None:
        view = memoryview(bytes(self._answers))
        self._answers.clear()
        while view:
            view = view[os.write(_SOCKET, view) :]
        self._flushed_s = time.monotonic()

    def _fill(self) -> bool:
        self.flush()
        piece = os.read(_SOCKET, _READ_BYTES)
        self._received += piece
        return bool(piece)


class Renderer:
    """Renders conversations with the template that it was told to compile."""

    def __init__(self, *, is_memory_limited: bool) -> None:
        self._is_memory_limited = is_memory_limited
        self._template: ChatTemplate | None = None

    def answer(self, body: bytes) -> bytes:
        """Return the frame that answers one.

        Raises:
            MemoryError: there is not enough memory.
        """
        try:
            return pack(self._answer(unpack_question(body)))
        except EngineError as error:
            if isinstance(error.__cause__, MemoryError):
                raise error.__cause__ from None
            return pack(Refused(Failure.of(error)))
        except UnicodeEncodeError:
            return _refuse("the model's chat template wrote half of a UTF-16 surrogate pair")
        except RecursionError:
            return _refuse("the messages are nested too deeply")

    def _answer(self, question: Question) -> Answer:
        if isinstance(question, Compile):
            self._template = ChatTemplate(question.source, question.special_tokens)
            return Compiled(self._is_memory_limited)
        assert self._template is not None and isinstance(question, Render)
        messages = [_with_objects(message) for message in question.messages]
        return Rendered(self._template.render(messages, **question.options))


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """Parse the JSON of a call's arguments, which templates print themselves from the object.
    Parsing may take seconds, so it is done in this process."""
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}


def _with_object(call: Any) -> Any:
    match call:
        case {"function": {"arguments": str(text)} as function}:
            try:
                arguments = json.loads(text)
            except (ValueError, RecursionError):
                return call
            if isinstance(arguments, dict):
                return {**call, "function": {**function, "arguments": arguments}}
    return call


def _refuse(message: str) -> bytes:
    return pack(Refused(Failure(InvalidParameter.code, message, "messages")))


if __name__ == "__main__":
    main()
