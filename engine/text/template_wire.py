"""The messages between the server and the process of a chat template, as heads of their frames.

server → process   Compile first, then any number of Render; each is answered before the next
process → server   Compiled, Rendered or Refused
"""

from collections.abc import Callable
from typing import Any

import msgspec

from engine.errors import Failure

OUT_OF_MEMORY = 3
"""The exit code of a process whose memory is used up."""


class Compile(msgspec.Struct, tag=True):
    """The template that all later frames use."""

    source: str
    special_tokens: dict[str, str]


class Render(msgspec.Struct, tag=True):
    """A conversation to render; `options` are the keyword arguments of `ChatTemplate.render`."""

    messages: list[dict[str, Any]]
    options: dict[str, Any]


class Compiled(msgspec.Struct, tag=True):
    """The answer that the template was compiled."""

    is_memory_limited: bool


class Rendered(msgspec.Struct, tag=True):
    """The answer with the prompt's text, as the template wrote it."""

    text: str


class Refused(msgspec.Struct, tag=True):
    """The answer that the template or the conversation cannot be used."""

    failure: Failure


Question = Compile | Render
Answer = Compiled | Rendered | Refused

encode = msgspec.json.encode
read_question: Callable[[bytes], Question] = msgspec.json.Decoder(Question).decode
read_answer: Callable[[bytearray], Answer] = msgspec.json.Decoder(Answer).decode
