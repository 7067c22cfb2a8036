"""Measures how alike two embeddings are."""

import numpy as np

_LEAST_NORM = 1e-8
"""torch.nn.CosineSimilarity's `eps`."""


def cosine(one: bytes, other: bytes) -> float:
    """Cosine of the angle between two embeddings, -1 to 1, as torch.nn.CosineSimilarity defines it.

    It is computed in 64 bits and pair by pair, so that the result does not depend on the rest of
    the request.

    Args:
        one, other: 32-bit numbers, little-endian, the same number of them.
    """
    a, b = (np.frombuffer(numbers, "<f4").astype(np.float64) for numbers in (one, other))
    norms = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / max(norms, _LEAST_NORM)
