"""The form of a reply: OpenAI's, or a dialect's.

A reply makes OpenAI's answer, or chunks of it, for every client; its shape decides what is sent.
"""

from typing import Any

import msgspec

from server.http.sse import OPENAI_FRAMING, Framing, event

encode = msgspec.json.Encoder().encode


class Shape:
    """OpenAI's form. A dialect overrides what it writes differently. One object serves one reply,
    so it may remember what it has seen of a stream."""

    framing: Framing = OPENAI_FRAMING

    def begin(self) -> None:
        """Called when the first piece of a text is there; not called for images."""

    def whole(self, answer: Any) -> bytes:
        """The bytes of an answer that is sent at once."""
        return encode(answer)

    def chunk(self, chunk: Any) -> bytes:
        """The bytes of a part of a stream; may be empty if the dialect sends nothing there."""
        return event(encode(chunk))
