"""Semantic entropy: how many different things several answers to one question say.

Answers are grouped by meaning, and the entropy is that of the groups' shares (Farquhar et al. 2024,
doi:10.1038/s41586-024-07421-0, the discrete form; Kuhn et al. 2023, arXiv:2302.09664, algorithm 1).
There, a model of entailment decides whether two answers mean the same; here, the cosine of their
embeddings does.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from server.embeddings.scores import cosine


def clusters_of(
    texts: Sequence[str], embeddings: Mapping[str, bytes], threshold: float
) -> list[int]:
    """The cluster of each text, numbered in the order in which clusters begin. A text joins the
    first cluster whose first text equals it or is at least as similar as the threshold; otherwise
    it begins a new one.

    Args:
        embeddings: embeddings by text. A text without one is only similar to itself.
    """
    firsts: list[str] = []
    cluster_of: dict[str, int] = {}
    for text in texts:
        if text in cluster_of:
            continue
        cluster_of[text] = next(
            (
                number
                for number, first in enumerate(firsts)
                if text in embeddings
                and first in embeddings
                and cosine(embeddings[first], embeddings[text]) >= threshold
            ),
            len(firsts),
        )
        if cluster_of[text] == len(firsts):
            firsts.append(text)
    return [cluster_of[text] for text in texts]


def entropy_of(clusters: Sequence[int]) -> float:
    """The entropy of the clusters' shares, in nats: 0 if all texts say one thing, ln n if they say
    n things equally often."""
    num = len(clusters)
    return math.fsum(-count / num * math.log(count / num) for count in Counter(clusters).values())
