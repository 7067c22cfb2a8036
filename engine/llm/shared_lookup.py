"""What texts that have ended said after the tokens that a text ends in now, for others to
guess by.

Requests come again with the same prompts, templates and data, so what was answered to one may be
what another gets: suffix decoding (Oliaro et al. 2024, arXiv:2411.04975) with a table of
n-grams in place of a tree. A key that texts share keeps those of others out.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class _Text:
    key: bytes
    token_ids: Sequence[int]
    heads: list[int] = field(default_factory=list)
    """Hash of the n-gram before each place that is in the table."""

    @property
    def is_whole(self) -> bool:
        """All of it is in the table."""
        return len(self.heads) >= len(self.token_ids)


class SharedLookup:
    """The newest texts, as many as hold so many tokens; the newest place of an n-gram counts.

    Memory: about 200 bytes per token. A token costs a hash when it is taken and when it goes.

    Args:
        num_tokens: kept at most, of all texts together.
        size: tokens of an n-gram.
    """

    def __init__(self, num_tokens: int, size: int) -> None:
        self._most, self._size = num_tokens, size
        self._texts: deque[_Text] = deque()
        self._num_tokens = 0
        self._unread: deque[_Text] = deque()
        self._places: dict[int, tuple[_Text, int]] = {}
        """By hash of key and n-gram."""

    def add(self, key: bytes, token_ids: Sequence[int]) -> None:
        """Take a text that has ended; `read` brings it into the table.

        Args:
            key: of texts that may know of it.
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
        """Bring places of the newest texts into the table, at most so many; says how many."""
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
        """What may come after a text, as `PromptLookup.find`, but perhaps fewer tokens."""
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
