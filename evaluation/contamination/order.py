"""Whether a model prefers the published order of items to other orders of them.

Any order of unseen items is as likely as another, whatever the items are, so this needs no other
items to compare with. Oren et al., Proving Test Set Contamination in Black-Box Language Models,
2024 (their shards are stretches here). If nothing was seen, the published order is one of several
drawn ones, so that the test is exact with few orders.
"""

from collections.abc import Sequence

import numpy as np

from evaluation.resampling import PERMUTATIONS
from evaluation.score_rows import Floats

BETWEEN = "\n\n"
"""What stands between items."""


def stretches(texts: Sequence[str], num_tokens: Sequence[int], limit: int) -> list[list[str]]:
    """Neighbouring items that fit into `limit` tokens together. Those that are left alone have no
    other order and are left out."""
    found: list[list[str]] = []
    room = 0
    for text, num in zip(texts, num_tokens, strict=True):
        needed = num + 1  # for what is between
        if needed > room:
            found.append([])
            room = limit
        found[-1].append(text)
        room -= needed
    return [stretch for stretch in found if len(stretch) > 1]


def orders(stretch: Sequence[str], num: int, generator: np.random.Generator) -> list[str]:
    """The text of a stretch in its published order, and in `num` random ones."""
    drawn = [generator.permutation(len(stretch)) for _ in range(num)]
    return [BETWEEN.join(stretch[i] for i in order) for order in [range(len(stretch)), *drawn]]


def preferences(likelihoods: Floats) -> Floats:
    """By how many standard deviations each order of a stretch is likelier than the stretch's mean.

    Args:
        likelihoods: [stretches, orders], logarithms; the published order comes first.
    """
    spread = likelihoods.std(axis=1, keepdims=True)
    above = likelihoods - likelihoods.mean(axis=1, keepdims=True)
    preferred: Floats = np.divide(above, spread, out=np.zeros_like(above), where=spread > 0)
    return preferred


def order_p_value(preferred: Floats, *, seed: int) -> float:
    """How often orders drawn from those of each stretch are preferred as much as the published
    ones."""
    generator = np.random.default_rng(seed)
    num_stretches, num_orders = preferred.shape
    drawn = generator.integers(0, num_orders, (PERMUTATIONS, num_stretches))
    sums = preferred[np.arange(num_stretches), drawn].sum(axis=1)
    # Sums in another order differ by rounding.
    num_as_high = int((sums >= preferred[:, 0].sum() - 1e-9).sum())
    return (1 + num_as_high) / (1 + PERMUTATIONS)
