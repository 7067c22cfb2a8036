"""How many tokens are worth drafting, by how often drafts were right and what each takes.

The n-th token of a draft counts if all before it are right, too: with the probability a that one
is right, a draft of n brings a + a² + … + aⁿ tokens beside the one that the step brings anyway. If
each takes p times as long as that one, n is to make (1 + a + … + aⁿ) / (1 + n p) as large as can be
(Leviathan et al. 2023, arXiv:2211.17192, theorem 3.8).
"""

from collections.abc import Iterable
from itertools import repeat

FIRST_RATE = 0.8
"""Of right tokens, as long as nothing is known."""
_MEMORY = 16
"""Tokens found right or wrong after which an old one weighs 1 / e."""


class AcceptanceRate:
    """The share of drafted tokens that were right of late, void ones left out.

    Attributes:
        value: from 0 to 1.
    """

    def __init__(self, value: float = FIRST_RATE) -> None:
        self.value = value

    def learn(self, num_drafts: int, num_accepted: int) -> None:
        """Of so many drafted tokens, at least one, so many were right; what follows the first wrong
        one is void."""
        num_judged = num_accepted + (num_accepted < num_drafts)
        keep = (1.0 - 1.0 / _MEMORY) ** num_judged
        self.value = keep * self.value + (1.0 - keep) * num_accepted / num_judged


def best_length(rate: float, price: float, most: int) -> int:
    """The number of tokens to draft, at most so many; 0 if none is worth its price.

    Args:
        rate: how many of the tokens are right.
        price: of one, in tokens that would have come in the same time.
    """
    return best_length_by(repeat(rate, most), price)


def best_length_by(
    rates: Iterable[float], price: float, *, num_given: int = 0, least_gain: float = 1.0
) -> int:
    """The same where each token has a probability of its own to be right if those before it are.

    Args:
        rates: of as many tokens as could be drafted, behind those that are given.
        num_given: tokens that the step computes anyway: nobody knows yet what they are, and the
            draft is for nothing if they are others.
        least_gain: what is not worth so many times its price is not drafted.
    """
    best, best_gain = 0, least_gain
    expected, likely = 1.0, 1.0
    for length, rate in enumerate(rates, 1 - num_given):
        likely *= rate
        if length < 1:
            continue
        expected += likely
        gain = expected / (1.0 + length * price)
        if gain > best_gain:
            best, best_gain = length, gain
    return best
