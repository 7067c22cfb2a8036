"""Ratings of models from votes, with intervals, as JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.arena.bradley_terry import fit_ratings
from evaluation.arena.elo import elo_ratings
from evaluation.arena.order_effect import agreement, order_effect
from evaluation.arena.tally import Tally
from evaluation.arena.vote import Vote
from evaluation.interval import LEVEL, percentile_interval
from evaluation.problem import EvaluationProblem
from evaluation.report import Report
from evaluation.resampling import bootstrap
from evaluation.score_rows import Floats

ELO_ORDERS = 200


def ratings_report(votes: Sequence[Vote], *, seed: int = 0) -> Report:
    """The ratings of all models, the best first, and the effect of the order.

    Args:
        seed: of the resampling; the same seed gives the same intervals.
    """
    read = [vote for vote in votes if vote.winner is not None]
    if not read:
        raise EvaluationProblem("there are no votes to rate models by; collect some first")
    tally = Tally(read)
    tally.check_connected()
    num_models = len(tally.models)

    def fit(counts: Floats) -> Floats:
        return fit_ratings(tally.pairs, tally.scores, counts, num_models)

    ratings = fit(tally.counts[None])[0]
    resampled = bootstrap(tally.groups.sums(tally.rows), fit, seed=seed)
    elo, elo_resampled = _elo(tally, seed)
    points = tally.points()
    has_ratings = not tally.unbeaten()
    models = []
    for number in np.argsort(-ratings, kind="stable"):
        models.append(
            {
                "model": tally.models[number],
                **_with_interval("rating", ratings if has_ratings else None, resampled, number),
                **_with_interval("elo", elo, elo_resampled, number),
                "num_votes": int((points + points.T)[number].sum()),
                "share_of_points": float(points[number].sum() / (points + points.T)[number].sum()),
            }
        )
    return {
        "format": "tandem-eval-ratings",
        "level": LEVEL,
        "num_votes": len(read),
        "num_ties": sum(vote.winner == "tie" for vote in read),
        "num_unreadable": len(votes) - len(read),
        "num_prompts": tally.groups.num,
        "models": models,
        "pairs": _pairs(tally),
        "order_effect": _order_effect(tally, seed),
        "agreement": _agreement(read),
        "notes": _notes(tally, votes, read),
    }


def _with_interval(
    name: str, values: Floats | None, resampled: Floats, number: int
) -> dict[str, float | None]:
    """A model's value and the ends of its interval; null if there is none."""
    if values is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    interval = percentile_interval(resampled[:, number], "")
    return {
        name: float(values[number]),
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
    }


def _elo(tally: Tally, seed: int) -> tuple[Floats, Floats]:
    """The mean ratings over random orders of all votes, and ratings of resampled votes."""
    generator = np.random.default_rng(seed)
    num = len(tally.kind_of)
    pairs, scores = tally.pairs[tally.kind_of], tally.scores[tally.kind_of]
    everything = [generator.permutation(num) for _ in range(ELO_ORDERS)]
    drawn = [_drawn(tally.groups.members, generator) for _ in range(ELO_ORDERS)]
    in_orders, resampled = (
        elo_ratings(pairs, scores, orders, len(tally.models)) for orders in (everything, drawn)
    )
    return in_orders.mean(axis=0), resampled


def _drawn(
    members: Sequence[npt.NDArray[np.int64]], generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """The votes of prompts drawn with replacement, in random order."""
    chosen = generator.integers(0, len(members), len(members))
    return generator.permutation(np.concatenate([members[number] for number in chosen]))


def _pairs(tally: Tally) -> list[dict[str, Any]]:
    """How pairs of models did against each other."""
    points = tally.points()
    found = []
    for first in range(len(tally.models)):
        for second in range(first + 1, len(tally.models)):
            num = points[first, second] + points[second, first]
            if num:
                found.append(
                    {
                        "models": [tally.models[first], tally.models[second]],
                        "num_votes": int(num),
                        "share_of_first": float(points[first, second] / num),
                    }
                )
    return found


def _order_effect(tally: Tally, seed: int) -> dict[str, Any] | None:
    found = order_effect(tally, seed=seed)
    if found is None:
        return None
    value, interval = found
    return {"value": value, "low": interval.low, "high": interval.high, "interval": interval.method}


def _agreement(votes: Sequence[Vote]) -> dict[str, Any] | None:
    found = agreement(votes)
    if found is None:
        return None
    same, num, interval = found
    return {"num_same": same, "num": num, "low": interval.low, "high": interval.high}


def _notes(tally: Tally, votes: Sequence[Vote], read: Sequence[Vote]) -> list[str]:
    """What makes the numbers doubtful."""
    notes = []
    if len(votes) > len(read):
        notes.append(f"{len(votes) - len(read)} verdicts could not be read and are left out")
    if unbeaten := tally.unbeaten():
        notes.append(
            f"{', '.join(unbeaten)} gave no point to any other model, so no finite ratings fit the "
            "votes; Elo is finite, but depends on how many votes there are"
        )
    judges = {vote.voter for vote in read if vote.voter in tally.models}
    if judges:
        notes.append(
            f"{', '.join(sorted(judges))} judged its own answers; models tend to prefer these"
        )
    return notes
