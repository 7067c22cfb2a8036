"""The messages between the server and the process of a chat template: JSON after its length.

server → process   Compile first, then any number of Render; each is answered before the next
process → server   Compiled, Rendered or Refused
"""

from typing import Any

import msgspec

from engine.errors import Failure

HEADER_BYTES = 4
MAX_FRAME_BYTES = 1 << 27
"""The largest frame: the longest text that a template may write, at 6 bytes per character in
JSON."""


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
    is_last: bool = False
    """Whether the process ends after this answer, because its memory is used up."""


Question = Compile | Render
Answer = Compiled | Rendered | Refused

_encode = msgspec.json.Encoder().encode
_question_decoder: msgspec.json.Decoder[Question] = msgspec.json.Decoder(Question)
_answer_decoder: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def pack(message: Question | Answer) -> bytes:
    """Pack a message into a whole frame.

    Raises:
        UnicodeEncodeError: a text has half of a surrogate pair.
        RecursionError: the message is nested too deeply.
    """
    body = _encode(message)
    return len(body).to_bytes(HEADER_BYTES, "little") + body


def frame_size(header: bytes | bytearray) -> int:
    """Return the number of bytes after this header."""
    return int.from_bytes(header[:HEADER_BYTES], "little")


def unpack_question(body: bytes) -> Question:
    return _question_decoder.decode(body)


def unpack_answer(body: bytes | bytearray) -> Answer:
    """Unpack an answer.

    Raises:
        msgspec.DecodeError: the bytes are not an answer.
    """
    return _answer_decoder.decode(body)
