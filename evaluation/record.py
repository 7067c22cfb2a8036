"""What a model answered to an item."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.task import Item


@dataclass(frozen=True, slots=True)
class Answer:
    """A text, or the log-likelihood of each choice.

    Attributes:
        finish_reason: why the text ended, as the server says.
        loglikelihoods: natural logarithms, one per choice; None for a text.
        fingerprint: the server's `system_fingerprint`, which changes with model and settings.
    """

    text: str = ""
    finish_reason: str | None = None
    loglikelihoods: tuple[float, ...] | None = None
    fingerprint: str | None = None

    def to_json(self) -> dict[str, Any]:
        if self.loglikelihoods is not None:
            values: dict[str, Any] = {"loglikelihoods": list(self.loglikelihoods)}
        else:
            values = {"text": self.text, "finish_reason": self.finish_reason}
        return values if self.fingerprint is None else {**values, "fingerprint": self.fingerprint}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Answer":
        loglikelihoods = values.get("loglikelihoods")
        return cls(
            text=values.get("text", ""),
            finish_reason=values.get("finish_reason"),
            loglikelihoods=None if loglikelihoods is None else tuple(loglikelihoods),
            fingerprint=values.get("fingerprint"),
        )


@dataclass(frozen=True, slots=True)
class Record:
    """An item with its answer."""

    item: Item
    answer: Answer
