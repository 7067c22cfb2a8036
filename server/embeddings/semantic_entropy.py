"""Semantic entropy: how many things several answers to one question say.

Answers are put together by meaning, and the entropy is that of the groups' shares (Farquhar et al.
2024, doi:10.1038/s41586-024-07421-0, the discrete form; Kuhn et al. 2023, arXiv:2302.09664,
algorithm 1). Whether two mean the same is said there by a model of entailment, and here by the
cosine of their embeddings.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from server.embeddings.scores import cosine


def clusters_of(
    texts: Sequence[str], embeddings: Mapping[str, bytes], threshold: float
) -> list[int]:
    """The cluster of each text, numbered in the order in which they begin: that of the first text
    of a cluster which is equal, or at least as similar as the threshold; else a new one.

    Args:
        embeddings: of the texts, but for those that have none: they are equal to nothing else.
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
    """Of the clusters' shares, in nats: 0 where all say one thing, ln n where n say n."""
    num = len(clusters)
    return math.fsum(-count / num * math.log(count / num) for count in Counter(clusters).values())
