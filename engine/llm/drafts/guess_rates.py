"""Learns how often a worker's guesses are right, by how many of the same text were right just
before.

The guesses themselves show whether a text copies another: any guess can be compared with what
comes, whether a row was computed for it or not. It therefore costs nothing to learn whether drafts
would have been right. All texts learn together, so that a new one need not find out by itself.
"""

_FIRST = (0.3, 0.5, 0.7, 0.8, 0.9)
"""The start values, for 0, 1, 2 to 3, 4 to 7, and 8 or more right guesses in a row."""
_FIRST_WEIGHT = 8
"""The weight of the start values, in guesses."""
_MEMORY = 128
"""The number of guesses after which an old one weighs 1 / e."""


class GuessRates:
    """The rates of one way to guess."""

    def __init__(self) -> None:
        self._values = list(_FIRST)
        self._nums = [_FIRST_WEIGHT] * len(_FIRST)

    def after(self, num_right: int) -> float:
        """The share of right guesses after `num_right` right ones in a row, from 0 to 1."""
        return self._values[_class_of(num_right)]

    def learn(self, num_right: int, is_right: bool) -> None:
        """Learn whether a guess after `num_right` right ones in a row was right."""
        place = _class_of(num_right)
        self._nums[place] = num = min(self._nums[place] + 1, _MEMORY)
        self._values[place] += (is_right - self._values[place]) / num


def _class_of(num_right: int) -> int:
    return min(num_right.bit_length(), len(_FIRST) - 1)
