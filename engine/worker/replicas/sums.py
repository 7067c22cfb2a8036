"""What several workers of one model have done together."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from engine.contract.request import StatsT


def sum_of(stats: Sequence[StatsT]) -> StatsT | None:
    """The statistics of all workers as those of one: numbers are added, except the size of a block,
    which all share, and those of the newest step, of which the largest counts. None if there are
    none."""
    if len(stats) < 2:
        return stats[0] if stats else None
    added = {
        f.name: _together(f.name, [getattr(one, f.name) for one in stats]) for f in fields(stats[0])
    }
    return replace(stats[0], **added)


def _together(name: str, values: list[Any]) -> Any:
    first = next((one for one in values if one is not None), None)
    if isinstance(first, dict):
        keys = {key: None for one in values for key in one}
        return {key: _together(key, [one[key] for one in values if key in one]) for key in keys}
    if is_dataclass(first):
        return sum_of([one for one in values if one is not None])
    if not isinstance(first, int | float):
        return first
    shared = name.startswith("step_") or name in ("kv_block_size", "publish_time_s")
    return max(values) if shared else sum(values)
