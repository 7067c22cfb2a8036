"""A vote between two answers to one prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evaluation.problem import EvaluationProblem

Winner = Literal["first", "second", "tie"]

_WINNERS: Mapping[str, Winner] = {
    "model_a": "first",
    "model_b": "second",
    "tie": "tie",
    "both_bad": "tie",
    "tie (bothbad)": "tie",
}
"""LMArena's words."""
_NAMES: Mapping[Winner, str] = {"first": "model_a", "second": "model_b", "tie": "tie"}
_SCORES: Mapping[Winner, float] = {"first": 1.0, "second": 0.0, "tie": 0.5}


@dataclass(frozen=True, slots=True)
class Vote:
    """Which of two answers is better.

    Attributes:
        prompt: the prompt's id; votes about one prompt depend on each other.
        first, second: the models, in the order in which their answers were shown.
        winner: None if the judge's answer could not be read.
        voter: the judge model, or what else says who voted.
        reason: what the judge gave as its reason, or its unreadable answer.
    """

    prompt: str
    first: str
    second: str
    winner: Winner | None
    voter: str | None = None
    reason: str | None = None

    @property
    def score(self) -> float:
        """What the first model gets: 1 for a win, a half for a tie."""
        assert self.winner is not None
        return _SCORES[self.winner]

    def to_json(self) -> dict[str, Any]:
        """The fields of a line, most of them with LMArena's names."""
        return {
            "prompt_id": self.prompt,
            "model_a": self.first,
            "model_b": self.second,
            "winner": None if self.winner is None else _NAMES[self.winner],
            "judge": self.voter,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], where: str) -> "Vote":
        """The vote of a line.

        Args:
            where: file and line, for messages.
        """
        models = [entry.get(name) for name in ("model_a", "model_b")]
        if not all(isinstance(model, str) and model for model in models) or models[0] == models[1]:
            raise EvaluationProblem(
                f"{where}: a vote needs the names of two different models, `model_a` and `model_b`"
            )
        winner = entry.get("winner")
        if winner is not None and winner not in _WINNERS:
            raise EvaluationProblem(
                f"{where}: `winner` is {winner!r}; it must be one of {', '.join(_WINNERS)}"
            )
        return cls(
            prompt=str(entry.get("prompt_id", where)),
            first=str(models[0]),
            second=str(models[1]),
            winner=None if winner is None else _WINNERS[winner],
            voter=entry.get("judge"),
            reason=entry.get("reason"),
        )
