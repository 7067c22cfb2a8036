"""Whether a model prefers the published order of items to other orders of them.

Any order of unseen items is as likely as another, whatever the items are, so this needs no other
items to compare with. Oren et al., Proving Test Set Contamination in Black-Box Language Models,
2024. The published order is one of several drawn ones if nothing was seen, so that the test is
exact with few orders.
"""

from collections.abc import Sequence

import numpy as np

from evaluation.resampling import PERMUTATIONS
from evaluation.score_rows import Floats

BETWEEN = "\n\n"
"""What stands between items."""


def shards(texts: Sequence[str], num_tokens: Sequence[int], limit: int) -> list[list[str]]:
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
    return [shard for shard in found if len(shard) > 1]


def orders(shard: Sequence[str], num: int, generator: np.random.Generator) -> list[str]:
    """The text of a shard in its published order, and in `num` random ones."""
    drawn = [generator.permutation(len(shard)) for _ in range(num)]
    return [BETWEEN.join(shard[i] for i in order) for order in [range(len(shard)), *drawn]]


def preferences(likelihoods: Floats) -> Floats:
    """By how many standard deviations each order of a shard is likelier than the shard's mean.

    Args:
        likelihoods: [shards, orders], logarithms; the published order comes first.
    """
    spread = likelihoods.std(axis=1, keepdims=True)
    above = likelihoods - likelihoods.mean(axis=1, keepdims=True)
    return np.divide(above, spread, out=np.zeros_like(above), where=spread > 0)


def order_p_value(preferred: Floats, *, seed: int) -> float:
    """How often orders drawn from those of each shard are preferred as much as the published
    ones."""
    generator = np.random.default_rng(seed)
    num_shards, num_orders = preferred.shape
    drawn = generator.integers(0, num_orders, (PERMUTATIONS, num_shards))
    sums = preferred[np.arange(num_shards), drawn].sum(axis=1)
    # Sums in another order differ by rounding.
    num_as_high = int((sums >= preferred[:, 0].sum() - 1e-9).sum())
    return (1 + num_as_high) / (1 + PERMUTATIONS)
