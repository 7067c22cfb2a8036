"""Sees that a text has begun to say the same tokens over and over."""

from engine.sampling_params import RepetitionDetection


class RepetitionDetector:
    """Of one text. A token costs the same wherever it is: a look back at each size of a pattern."""

    def __init__(self, wanted: RepetitionDetection) -> None:
        self._sizes = range(wanted.min_pattern_size, wanted.max_pattern_size + 1)
        self._min_count = wanted.min_count
        self._last: list[int] = [-1] * wanted.max_pattern_size
        """The last tokens, each in the place of its number modulo the length."""
        self._num_tokens = 0
        self._num_same = [0] * (wanted.max_pattern_size + 1)
        """By size: so many of the last tokens were each what stood so far before it."""

    def append(self, token_id: int) -> bool:
        """Take the text's next token; whether it completes `min_count` times one pattern."""
        last, num_same, is_found = self._last, self._num_same, False
        length = len(last)
        for size in self._sizes:
            if last[(self._num_tokens - size) % length] == token_id:
                num_same[size] += 1
                is_found = is_found or num_same[size] >= size * (self._min_count - 1)
            else:
                num_same[size] = 0
        last[self._num_tokens % length] = token_id
        self._num_tokens += 1
        return is_found
