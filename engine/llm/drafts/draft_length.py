"""Computes how many tokens are worth drafting, from how often drafts were right and what each
costs.

The n-th token of a draft counts only if all tokens before it are right. If one is right with
probability a, a draft of n brings a + a² + … + aⁿ tokens beside the one that the step brings
anyway. If each costs p times as long as that one, the best n maximises (1 + a + … + aⁿ) / (1 + n p)
(Leviathan et al. 2023, arXiv:2211.17192, theorem 3.8).
"""

from collections.abc import Iterable
from itertools import repeat

FIRST_RATE = 0.8
"""The share of right tokens that is assumed at first."""
_MEMORY = 16
"""The number of judged tokens after which an old one weighs 1 / e."""


class AcceptanceRate:
    """The share of recently drafted tokens that were right, void ones left out.

    Attributes:
        value: the share, from 0 to 1.
    """

    def __init__(self, value: float = FIRST_RATE) -> None:
        self.value = value

    def learn(self, num_drafts: int, num_accepted: int) -> None:
        """Learn that `num_accepted` of `num_drafts` drafted tokens were right. At least one was
        drafted, and tokens after the first wrong one are void."""
        num_judged = num_accepted + (num_accepted < num_drafts)
        keep = (1.0 - 1.0 / _MEMORY) ** num_judged
        self.value = keep * self.value + (1.0 - keep) * num_accepted / num_judged


def best_length(rate: float, price: float, most: int) -> int:
    """The number of tokens to draft, at most `most`; 0 if none is worth its price.

    Args:
        rate: the share of tokens that are right.
        price: the price of one token, in tokens that would have come in the same time.
    """
    return best_length_by(repeat(rate, most), price)


def best_length_by(
    rates: Iterable[float], price: float, *, num_given: int = 0, least_gain: float = 1.0
) -> int:
    """The same as `best_length`, with a separate probability for each token to be right if those
    before it are.

    Args:
        rates: the probabilities, first of the given tokens, then of those that could be drafted.
        num_given: the number of tokens that the step computes anyway but that are not known yet;
            the draft is useless if they differ from those that were expected.
        least_gain: a draft must be worth at least this many times its price.
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
