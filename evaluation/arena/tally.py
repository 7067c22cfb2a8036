"""Votes as counts: how often each ordered pair of models had each result."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evaluation.arena.vote import Vote
from evaluation.problem import EvaluationProblem
from evaluation.resampling import Groups
from evaluation.score_rows import Floats


class Tally:
    """The counts of votes.

    Attributes:
        models: their names, sorted.
        pairs, scores: the models of each kind of vote, and what the first of them gets.
        rows: [votes, kinds], 1 for the kind of a vote.
        groups: votes about one prompt belong together.
    """

    def __init__(self, votes: Sequence[Vote]) -> None:
        self.models = sorted({model for vote in votes for model in (vote.first, vote.second)})
        number = {model: i for i, model in enumerate(self.models)}
        keys = [(number[vote.first], number[vote.second], vote.score) for vote in votes]
        kinds = sorted(set(keys))
        self.pairs: npt.NDArray[np.int64] = np.array([kind[:2] for kind in kinds], np.int64)
        self.scores: Floats = np.array([kind[2] for kind in kinds])
        self.kind_of: npt.NDArray[np.int64] = np.array([kinds.index(key) for key in keys], np.int64)
        self.rows: Floats = np.eye(len(kinds))[self.kind_of]
        self.groups = Groups([vote.prompt for vote in votes])

    @property
    def counts(self) -> Floats:
        """[kinds], how many votes there are of each kind."""
        return np.asarray(self.rows.sum(axis=0), np.float64)

    def points(self) -> Floats:
        """[models, models], the points of each model against each other: 1 for a win, a half for a
        tie."""
        points = np.zeros((len(self.models), len(self.models)))
        np.add.at(points, tuple(self.pairs.T), self.counts * self.scores)
        np.add.at(points, tuple(self.pairs[:, ::-1].T), self.counts * (1 - self.scores))
        return points

    def check_connected(self) -> None:
        """Raise if some models were never compared with the others, not even through third ones."""
        points = self.points()
        reached = _reached(points + points.T > 0)[0]
        if not reached.all():
            names = [", ".join(np.array(self.models)[part]) for part in (reached, ~reached)]
            raise EvaluationProblem(
                f"no vote compares any of {names[0]} with any of {names[1]}, directly or through "
                "others, so their ratings have no common scale; add such votes"
            )

    def unbeaten(self) -> list[str]:
        """The models of a group that got no point from, or gave none to, all other models. No
        finite ratings fit such votes."""
        is_reached = _reached(self.points() > 0)
        strongest = is_reached.sum(axis=1).argmax()
        part = is_reached[strongest] & is_reached[:, strongest]
        return [] if part.all() else [self.models[number] for number in np.flatnonzero(part)]


def _reached(edges: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[models, models], whether a chain of edges leads from one to the other."""
    reached = edges | np.eye(len(edges), dtype=bool)
    for _ in range(len(edges)):
        reached = reached @ reached
    return np.asarray(reached, bool)
