"""The record of one request, and its row in a result file."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

INTERRUPTED = "interrupted"


@dataclass(slots=True)
class RequestRecord:
    """Times are seconds: `at_s` and `sent_s` after the start of the run, the others after sending.

    `text_s` has one entry per chunk that carried text. Token counts are the server's own usage;
    None when it sent none. `status` is HTTP's. A request without an `error` got its whole answer.
    """

    index: int
    max_tokens: int
    at_s: float | None = None
    sent_s: float = 0.0
    text_s: list[float] = field(default_factory=list)
    end_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    status: int | None = None
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        return self.text_s[0] if self.text_s else None

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies: the gaps between chunks with text."""
        return [after - before for before, after in pairwise(self.text_s)]

    @property
    def num_tokens(self) -> int:
        """Output tokens, or the number of chunks if the server reports no usage."""
        return len(self.text_s) if self.output_tokens is None else self.output_tokens

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for fewer than two tokens."""
        if len(self.text_s) < 2 or self.num_tokens < 2:
            return None
        return (self.text_s[-1] - self.text_s[0]) / (self.num_tokens - 1)

    def to_row(self) -> dict[str, Any]:
        """JSON form: milliseconds, the chunk times as gaps; empty fields are left out."""
        row = {
            "i": self.index,
            "at_s": _rounded(self.at_s, 4),
            "sent_s": round(self.sent_s, 4),
            "ttft_ms": _rounded(self.ttft_s, 2, 1000),
            "gaps_ms": [round(gap * 1000, 2) for gap in self.gaps_s] or None,
            "end_ms": _rounded(self.end_s, 2, 1000),
            "max_tokens": self.max_tokens,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "cached_tokens": self.cached_tokens,
            "finish": self.finish_reason,
            "error": self.error,
        }
        return {key: value for key, value in row.items() if value is not None}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "RequestRecord":
        """The inverse of `to_row`, up to its rounding."""
        text_ms = [row["ttft_ms"]] if "ttft_ms" in row else []
        for gap in row.get("gaps_ms", ()):
            text_ms.append(text_ms[-1] + gap)
        return cls(
            index=row["i"],
            max_tokens=row["max_tokens"],
            at_s=row.get("at_s"),
            sent_s=row["sent_s"],
            text_s=[at / 1000 for at in text_ms],
            end_s=row["end_ms"] / 1000 if "end_ms" in row else None,
            prompt_tokens=row.get("prompt_tokens"),
            output_tokens=row.get("output_tokens"),
            cached_tokens=row.get("cached_tokens"),
            finish_reason=row.get("finish"),
            error=row.get("error"),
        )


def _rounded(value: float | None, digits: int, factor: float = 1.0) -> float | None:
    return None if value is None else round(value * factor, digits)
