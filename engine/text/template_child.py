"""The process that renders one model's chat template, within limits of time and memory.

`TemplateProcess` starts it as `python -m engine.text.template_child CPU_SECONDS MEMORY_BYTES`. Its
standard input is a socket for questions and answers. Templates are foreign code: the kernel ends
this process if it runs for too long, and nothing else is affected.

The process ends when the socket does. If the server dies, a running template is ended by the limit
of processor time.
"""

import json
import os
import sys
from typing import Any

from engine.errors import EngineError, Failure, InvalidParameter
from engine.processes.helper_child import serve
from engine.processes.process_limits import limit_memory, limit_time
from engine.text.chat_template import ChatTemplate
from engine.text.template_wire import (
    OUT_OF_MEMORY,
    Answer,
    Compile,
    Compiled,
    Question,
    Refused,
    Render,
    Rendered,
    encode,
    read_question,
)


def main() -> None:
    """Answer questions until the server hangs up."""
    cpu_s, memory_bytes = int(sys.argv[1]), int(sys.argv[2])
    renderer = Renderer(cpu_s, is_memory_limited=limit_memory(memory_bytes))
    try:
        serve(renderer.answer)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


class Renderer:
    """Renders conversations with the template that it was told to compile."""

    def __init__(self, cpu_s: int, *, is_memory_limited: bool) -> None:
        self._cpu_s = cpu_s
        self._is_memory_limited = is_memory_limited
        self._template: ChatTemplate | None = None

    def answer(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Return the answer to a question.

        Raises:
            MemoryError: there is not enough memory.
        """
        limit_time(self._cpu_s)
        return self._encoded(head), b""

    def _encoded(self, head: bytes) -> bytes:
        try:
            return encode(self._answer(read_question(head)))
        except EngineError as error:
            if isinstance(error.__cause__, MemoryError):
                raise error.__cause__ from None
            return encode(Refused(Failure.of(error)))
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
    return encode(Refused(Failure(InvalidParameter.code, message, "messages")))


if __name__ == "__main__":
    main()
