"""The record of one image request, its row in a result file, and the summary of many."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.metrics import distribution_ms, max_in_flight


@dataclass(slots=True)
class ImageRecord:
    """Times are seconds: `at_s` and `sent_s` after the start of the run, `end_s` after sending.

    `num_bytes` is the size of the PNG. `status` is HTTP's. A request without an `error` got its
    whole picture.
    """

    index: int
    size: int
    steps: int
    role: str | None = None
    at_s: float | None = None
    sent_s: float = 0.0
    end_s: float | None = None
    num_bytes: int | None = None
    status: int | None = None
    error: str | None = None

    @property
    def megapixel_steps(self) -> float:
        return self.size * self.size * self.steps / 1e6

    def to_row(self) -> dict[str, Any]:
        """JSON form; empty fields are left out."""
        row = {
            "i": self.index,
            "at_s": None if self.at_s is None else round(self.at_s, 4),
            "sent_s": round(self.sent_s, 4),
            "end_ms": None if self.end_s is None else round(self.end_s * 1000, 2),
            "size": self.size,
            "steps": self.steps,
            "role": self.role,
            "bytes": self.num_bytes,
            "error": self.error,
        }
        return {key: value for key, value in row.items() if value is not None}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "ImageRecord":
        """The inverse of `to_row`, up to its rounding and without the status."""
        return cls(
            index=row["i"],
            size=row["size"],
            steps=row["steps"],
            role=row.get("role"),
            at_s=row.get("at_s"),
            sent_s=row["sent_s"],
            end_s=row["end_ms"] / 1000 if "end_ms" in row else None,
            num_bytes=row.get("bytes"),
            error=row.get("error"),
        )


def summarise_images(
    records: Sequence[ImageRecord], wall_s: float, num_planned: int
) -> dict[str, Any]:
    """The numbers of a run, as they are stored.

    Rates and latencies are those of the pictures that arrived. Failures are counted, and their time
    is part of `wall_s`, so they never improve a rate.
    """
    succeeded = [record for record in records if record.error is None]
    megapixel_steps = sum(record.megapixel_steps for record in succeeded)
    return {
        "num_planned": num_planned,
        "num_sent": len(records),
        "num_ok": len(succeeded),
        "num_failed": len(records) - len(succeeded),
        "errors": dict(Counter(record.error for record in records if record.error)),
        "wall_s": round(wall_s, 4),
        "max_in_flight": max_in_flight(records),
        "images_s": round(len(succeeded) / wall_s, 4) if wall_s else 0.0,
        "megapixel_steps_s": round(megapixel_steps / wall_s, 4) if wall_s else 0.0,
        "latency_ms": distribution_ms([r.end_s for r in succeeded if r.end_s is not None]),
    }
