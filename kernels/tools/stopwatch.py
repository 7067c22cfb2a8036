"""Times calls on a CPU or a GPU."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

ROUND_S = 0.01
"""Approximate duration of a round, from which the number of calls follows."""
TOTAL_S = 0.3
"""Least total time of the rounds, of which there are at least `MIN_ROUNDS`."""
MIN_ROUNDS = 5
GPU_HEAD_START_CYCLES = 20_000_000
"""About 10 ms that the GPU waits at first, so that it finds all launches of a round queued."""


def median_seconds(
    call: Callable[..., Any], inputs: Sequence[dict[str, Any]], device: torch.device
) -> float:
    """Return the median time of a call, in turn with each of the `inputs`.

    All inputs are used once before, so that everything is built and caches are full.
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
    """Time a round between two events on the GPU, which excludes the host's cost of launching."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(GPU_HEAD_START_CYCLES)  # type: ignore[no-untyped-call]
    begin.record()
    for one in inputs:
        call(**one)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
