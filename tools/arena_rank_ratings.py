"""Writes votes and the ratings that arena-rank gives them, for tests/evaluation/arena.

    pip install arena-rank && python -m tools.arena_rank_ratings

Install it into an environment of its own: it asks for one version of JAX and of NumPy.
"""

import json
import math
import random
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

OUTPUT = Path("tests/data/arena_rank.json")
CASES = ((2, 30, 0.0), (3, 60, 0.2), (5, 200, 0.4), (8, 400, 0.1))
"""Numbers of models and votes, and the share of ties."""

Votes = list[tuple[str, str, str]]


def drawn_votes(num_models: int, num_votes: int, ties: float) -> Votes:
    """Votes between models of random strengths."""
    models = [f"model {letter}" for letter in "abcdefgh"[:num_models]]
    strengths = {model: random.gauss(0, 0.7) for model in models}
    votes = []
    for _ in range(num_votes):
        first, second = random.sample(models, 2)
        is_won = random.random() < 1 / (1 + math.exp(strengths[second] - strengths[first]))
        winner = "model_a" if is_won else "model_b"
        votes.append((first, second, "tie" if random.random() < ties else winner))
    return votes


def ratings_of(votes: Votes) -> dict[str, float]:
    """The ratings by arena-rank's own defaults."""
    import pandas
    from arena_rank.models.bradley_terry import BradleyTerry
    from arena_rank.utils.data_utils import PairDataset

    frame = pandas.DataFrame(votes, columns=["model_a", "model_b", "winner"])
    data = PairDataset.from_pandas(frame)
    found: dict[str, Any] = BradleyTerry(len(data.competitors)).compute_ratings_and_cis(data)
    return {
        model: float(rating)
        for model, rating in zip(found["competitors"], found["ratings"], strict=True)
    }


def main() -> None:
    random.seed(int(sys.argv[1]) if sys.argv[1:] else None)
    cases = []
    for case in CASES:
        votes = drawn_votes(*case)
        cases.append({"votes": votes, "ratings": ratings_of(votes)})
    document = {"made_by": f"arena-rank {version('arena-rank')}", "cases": cases}
    OUTPUT.write_text(json.dumps(document, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
