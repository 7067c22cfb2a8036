"""Finds what ended texts said after the tokens in which a text ends now, as guesses for that text.

Requests repeat prompts, templates and data, so the answer to one may be the answer to another. This
is suffix decoding (Oliaro et al. 2024, arXiv:2411.04975) with a table of n-grams in place of a
tree. Only texts with the same key learn from each other.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class _Text:
    key: bytes
    token_ids: Sequence[int]
    heads: list[int] = field(default_factory=list)
    """The hash of the n-gram before each place that is in the table."""

    @property
    def is_whole(self) -> bool:
        """Whether all of the text is in the table."""
        return len(self.heads) >= len(self.token_ids)


class SharedLookup:
    """A table of the newest texts within a number of tokens. For each n-gram, its newest place
    counts.

    It takes about 200 bytes per token. A token costs a hash when it is added and when it is
    dropped.

    Args:
        num_tokens: the most tokens kept, of all texts together.
        size: the number of tokens in an n-gram.
    """

    def __init__(self, num_tokens: int, size: int) -> None:
        self._most, self._size = num_tokens, size
        self._texts: deque[_Text] = deque()
        self._num_tokens = 0
        self._unread: deque[_Text] = deque()
        self._places: dict[int, tuple[_Text, int]] = {}
        """The newest place by the hash of key and n-gram."""

    def add(self, key: bytes, token_ids: Sequence[int]) -> None:
        """Take a text that has ended; `read` adds it to the table.

        Args:
            key: the key of the texts that may learn from it.
        """
        if not self._size < len(token_ids) <= self._most:
            return
        text = _Text(key, token_ids)
        self._texts.append(text)
        self._unread.append(text)
        self._num_tokens += len(token_ids)
        while self._num_tokens > self._most:
            self._drop(self._texts.popleft())

    def read(self, num_places: int) -> int:
        """Add up to `num_places` places of waiting texts to the table. Returns how many."""
        num_left = num_places
        while num_left > 0 and self._unread:
            text = self._unread[0]
            first = len(text.heads)
            for place in range(first, min(first + num_left, len(text.token_ids))):
                head = self._head(text.key, text.token_ids, place)
                text.heads.append(head)
                if place >= self._size:
                    self._places[head] = (text, place)
            num_left -= len(text.heads) - first
            if text.is_whole:
                self._unread.popleft()
        return num_places - num_left

    def find(self, key: bytes, token_ids: Sequence[int], num_tokens: int) -> list[int]:
        """Guess what may follow a text, as `PromptLookup.find` does, but perhaps with fewer
        tokens."""
        end = len(token_ids)
        if end < self._size:
            return []
        text, place = self._places.get(self._head(key, token_ids, end), (None, 0))
        if text is None or text.key != key:
            return []
        if list(text.token_ids[place - self._size : place]) != token_ids[end - self._size :]:
            return []
        return list(text.token_ids[place : place + num_tokens])

    def _head(self, key: bytes, token_ids: Sequence[int], place: int) -> int:
        return hash((key, *token_ids[max(0, place - self._size) : place]))

    def _drop(self, text: _Text) -> None:
        self._num_tokens -= len(text.token_ids)
        for head in text.heads:
            found = self._places.get(head)
            if found is not None and found[0] is text:
                del self._places[head]
        if not text.is_whole:
            self._unread.remove(text)
