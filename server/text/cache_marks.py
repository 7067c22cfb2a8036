"""Places in a conversation up to which a client wants it to stay cached.

Chat templates are programs, so it is not known which tokens a message becomes. But two
conversations that differ only behind a place have the same tokens up to there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.contract.generate import Pin
from server.protocol.chat import ChatCompletionRequest

MARK = "¶"
"""What is put behind a place, to find it among the tokens."""


@dataclass(slots=True)
class CacheMark:
    """A place in a conversation."""

    marked: ChatCompletionRequest
    """The conversation with `MARK` at the place."""
    seconds: int
    num_tokens: int = 0
    """The number of tokens before the place, once known."""

    def find(self, prompt: Sequence[int], marked: Sequence[int]) -> Pin:
        """Find the place by the tokens of both conversations."""
        pairs = enumerate(zip(prompt, marked, strict=False))
        shorter = min(len(prompt), len(marked))
        self.num_tokens = next((i for i, (one, other) in pairs if one != other), shorter)
        return Pin(self.num_tokens, self.seconds)
