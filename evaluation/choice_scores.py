"""Whether the right choice is the likeliest."""

from collections.abc import Sequence


def is_likeliest(loglikelihoods: Sequence[float], answer: int) -> float:
    """1 if the right choice is the likeliest; of equally likely ones the first counts."""
    return float(_first_best(loglikelihoods) == answer)


def is_likeliest_per_byte(
    loglikelihoods: Sequence[float], answer: int, choices: Sequence[str]
) -> float:
    """The same by log-likelihood per byte of a choice in UTF-8, which favours no short choice."""
    per_byte = [
        value / len(choice.encode()) for value, choice in zip(loglikelihoods, choices, strict=True)
    ]
    return float(_first_best(per_byte) == answer)


def _first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda number: values[number])
