"""Times calls on a CPU or a GPU."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

ROUND_S = 0.01
"""A round is so many calls that it lasts about this long."""
TOTAL_S = 0.3
"""Rounds are timed for so long, and at least `MIN_ROUNDS`."""
MIN_ROUNDS = 5
GPU_HEAD_START_CYCLES = 20_000_000
"""The GPU waits about 10 ms at first, so that it finds all launches of a round queued."""


def median_seconds(
    call: Callable[..., Any], inputs: Sequence[dict[str, Any]], device: torch.device
) -> float:
    """Of one call, in turn with each of the `inputs`.

    They are all used once before, so that everything is built and each cache is as full as it gets.
    """
    for one in inputs:
        call(**one)
    turns = itertools.cycle(inputs)
    timed = _gpu_round if device.type == "cuda" else _cpu_round
    once = max(timed(call, [next(turns)]), 1e-7)
    calls = max(1, round(ROUND_S / once))
    seconds: list[float] = []
    while len(seconds) < MIN_ROUNDS or sum(seconds) * calls < TOTAL_S:
        seconds.append(timed(call, list(itertools.islice(turns, calls))) / calls)
    return statistics.median(seconds)


def _cpu_round(call: Callable[..., Any], inputs: Iterable[dict[str, Any]]) -> float:
    start = time.perf_counter()
    for one in inputs:
        call(**one)
    return time.perf_counter() - start


def _gpu_round(call: Callable[..., Any], inputs: Iterable[dict[str, Any]]) -> float:
    """Between two events on the GPU: what launching costs on the host is not part of it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(GPU_HEAD_START_CYCLES)  # type: ignore[no-untyped-call]
    begin.record()
    for one in inputs:
        call(**one)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
