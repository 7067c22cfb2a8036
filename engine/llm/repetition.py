"""Detects that a text has begun to repeat the same tokens over and over."""

from engine.contract.generate import Repetition
from engine.contract.sampling_params import RepetitionDetection


class RepetitionDetector:
    """Detects repetitions in one text. Every token costs the same: one comparison per pattern size.

    Attributes:
        ends_text: whether the text must end where it repeats itself.
        longest: the longest repetition so far; of several of equal length the first, with the
            smallest pattern.
    """

    def __init__(self, wanted: RepetitionDetection) -> None:
        self._sizes = range(wanted.min_pattern_size, wanted.max_pattern_size + 1)
        self._min_count = wanted.min_count
        self.ends_text = wanted.ends_text
        self.longest: Repetition | None = None
        self._last: list[int] = [-1] * wanted.max_pattern_size
        """The last tokens, each at its number modulo the list's length."""
        self._num_tokens = 0
        self._num_same = [0] * (wanted.max_pattern_size + 1)
        """By pattern size, how many of the last tokens each equal the token that many places
        before."""

    def append(self, token_id: int) -> bool:
        """Take the text's next token. Returns whether it completes `min_count` repetitions of a
        pattern."""
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
