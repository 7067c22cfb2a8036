"""The scores of pairs of texts: a reranker's, or how alike two embeddings are."""

from dataclasses import dataclass

import numpy as np

from server.embeddings.convert import Embedded
from server.http.turns import in_turns

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


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of a request's pairs, in their order."""

    request_id: str
    model: str
    scores: list[float]
    num_tokens: int


async def cosines(embedded: Embedded, num_first: int) -> Scored:
    """Compare the first texts with the others by their embeddings, as `pair_indices` pairs them."""
    vectors = [event.embedding for event in embedded.events]
    pairs = pair_indices(num_first, len(vectors))
    scores = await in_turns(lambda pair: cosine(vectors[pair[0]], vectors[pair[1]]), pairs)
    return Scored(embedded.request.request_id, embedded.request.model, scores, embedded.num_tokens)


def pair_indices(num_first: int, num_texts: int) -> list[tuple[int, int]]:
    """The indices of the texts of each pair: a single first text is paired with each of the others,
    several are paired with the others in their order."""
    return [
        (0 if num_first == 1 else second - num_first, second)
        for second in range(num_first, num_texts)
    ]
