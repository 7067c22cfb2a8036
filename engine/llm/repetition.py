"""Sees that a text has begun to say the same tokens over and over."""

from engine.sampling_params import RepetitionDetection
from engine.types import Repetition


class RepetitionDetector:
    """Of one text. A token costs the same wherever it is: a look back at each size of a pattern.

    Attributes:
        ends_text: the text is to end where it repeats itself.
        longest: repetition so far; of several of a length the first, with the smallest pattern.
    """

    def __init__(self, wanted: RepetitionDetection) -> None:
        self._sizes = range(wanted.min_pattern_size, wanted.max_pattern_size + 1)
        self._min_count = wanted.min_count
        self.ends_text = wanted.ends_text
        self.longest: Repetition | None = None
        self._last: list[int] = [-1] * wanted.max_pattern_size
        """The last tokens, each in the place of its number modulo the length."""
        self._num_tokens = 0
        self._num_same = [0] * (wanted.max_pattern_size + 1)
        """By size: so many of the last tokens were each what stood so far before it."""

    def append(self, token_id: int) -> bool:
        """Take the text's next token; whether it completes `min_count` times one pattern."""
        last, num_same, is_found = self._last, self._num_same, False
        length, most = len(last), self.longest.num_tokens if self.longest is not None else 0
        for size in self._sizes:
            if last[(self._num_tokens - size) % length] == token_id:
                num_same[size] += 1
                if num_same[size] >= size * (self._min_count - 1):
                    is_found = True
                    if num_same[size] + size > most:
                        most = num_same[size] + size
                        self.longest = Repetition(size, self._num_tokens + 1 - most, most)
            else:
                num_same[size] = 0
        last[self._num_tokens % length] = token_id
        self._num_tokens += 1
        return is_found
