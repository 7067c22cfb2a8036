"""Finds where a text's last tokens occurred before: what followed them there may follow again.

Answers repeat their subject: edited code, quoted passages, names. The last n tokens of a text (an
n-gram) are looked for in all of it, and the tokens that followed them are the guess (prompt lookup
decoding, Saxena 2023; vLLM's `ngram`, transformers' `prompt_lookup_num_tokens`).
"""

from array import array
from collections.abc import Sequence

MAX_CANDIDATES = 16
"""The number of places that a search looks at, the latest first."""
_MOST_HEADS = 1 << 16


class PromptLookup:
    """An index of one text's n-grams that grows with the text: chains of places by hash, as in
    zlib.

        heads    hash of the last n tokens before a place → the latest such place
        chain    place → the latest place before it with the same hash

    It takes 4 bytes per token and 4 per head. For any text, adding a token costs a hash, and a
    search at most `MAX_CANDIDATES` comparisons of `longest` tokens.

    Args:
        shortest: the number of tokens that must match.
        longest: the number of tokens that are compared. The place where most match is taken; of
            several, the latest.
        num_tokens: how long the text is expected to get; longer texts have longer chains.
    """

    def __init__(self, shortest: int, longest: int, num_tokens: int) -> None:
        self._shortest = shortest
        self._longest = longest
        num_heads = min(_MOST_HEADS, 1 << max(8, (num_tokens - 1).bit_length()))
        self._mask = num_heads - 1
        self._heads = array("i", [-1]) * num_heads
        self._chain = array("i")

    @property
    def num_indexed(self) -> int:
        """The number of places in the index; each is the place before the token of its number."""
        return len(self._chain)

    def extend(self, token_ids: Sequence[int], num_places: int) -> int:
        """Add the places before the text's next tokens to the index, at most `num_places`.

        Returns:
            How many were added: fewer than `num_places` if the text ends before.
        """
        heads, chain, first = self._heads, self._chain, len(self._chain)
        last = min(first + num_places, len(token_ids))
        for place in range(first, last):
            if place < self._shortest:
                chain.append(-1)
            else:
                head = self._head(token_ids, place)
                chain.append(heads[head])
                heads[head] = place
        return max(0, last - first)

    def find(self, token_ids: Sequence[int], num_tokens: int) -> list[int]:
        """Guess what follows the text, whose tokens are all in the index.

        Returns:
            `num_tokens` tokens, or none. A text that repeats itself is expected to keep repeating.
        """
        place = self._best_place(token_ids)
        if place < 0:
            return []
        period = len(token_ids) - place
        return [token_ids[place + i % period] for i in range(num_tokens)]

    def _best_place(self, token_ids: Sequence[int]) -> int:
        end = len(token_ids)
        if end < self._shortest:
            return -1
        place, best, most = self._heads[self._head(token_ids, end)], -1, self._shortest - 1
        for _ in range(MAX_CANDIDATES):
            if place < 0 or most == self._longest:
                break
            num_equal = self._num_equal(token_ids, place)
            if num_equal > most:
                best, most = place, num_equal
            place = self._chain[place]
        return best

    def _num_equal(self, token_ids: Sequence[int], place: int) -> int:
        """Count the tokens before `place` that equal the text's last ones, at most `longest`."""
        end = len(token_ids)
        for n in range(min(self._longest, place)):
            if token_ids[place - 1 - n] != token_ids[end - 1 - n]:
                return n
        return min(self._longest, place)

    def _head(self, token_ids: Sequence[int], place: int) -> int:
        return hash(tuple(token_ids[place - self._shortest : place])) & self._mask
