"""How a reply is written: in OpenAI's shape, or a dialect's.

A reply makes OpenAI's answer, or chunks of it, whoever asked; what they become on the wire is its
shape's to say.
"""

from typing import Any

import msgspec

from server.http.sse import OPENAI_FRAMING, Framing, event

encode = msgspec.json.Encoder().encode


class Shape:
    """OpenAI's. A dialect overrides what it writes otherwise. One object serves one reply, so it
    may remember what it has seen of a stream."""

    framing: Framing = OPENAI_FRAMING

    def begin(self) -> None:
        """The first of a text is there; not called for images."""

    def whole(self, answer: Any) -> bytes:
        """An answer that is sent at once."""
        return encode(answer)

    def chunk(self, chunk: Any) -> bytes:
        """A part of a stream; may be empty, where the dialect says nothing there."""
        return event(encode(chunk))
