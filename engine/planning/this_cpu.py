"""Describes this machine's processor as a chip; half a second measures its memory bandwidth and
arithmetic."""

import time
from collections.abc import Callable

import torch

from engine.planning.chips import Chip
from kernels import PackedWeight, linear, linear_packed, machine, native

_READ_BYTES = 128 << 20
_SIZE = 1024
"""The number of inputs and outputs of the measured product."""
_ROWS = 256
_ROUNDS = 5


@torch.inference_mode()
def this_cpu(free_bytes: int) -> Chip:
    """Measure with all of torch's threads; the load of other processes shows in the result."""
    reading_s = _least_s(torch.ones(_READ_BYTES // 8, dtype=torch.int64).sum)
    weight, rows = (torch.randn(n, _SIZE).bfloat16() for n in (_SIZE, _ROWS))
    if native.library() is None:
        multiplying_s = _least_s(lambda: linear(rows, weight))
    else:
        packed = PackedWeight.pack(weight)
        multiplying_s = _least_s(lambda: linear_packed(rows, packed))
    return Chip(
        machine.cpu_name(),
        free_bytes,
        _READ_BYTES / reading_s,
        2 * _ROWS * _SIZE * _SIZE / multiplying_s,
    )


def _least_s(run: Callable[[], object]) -> float:
    """The shortest of several times, after a first run for set-up."""
    run()
    times = []
    for _ in range(_ROUNDS):
        start_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - start_s)
    return max(min(times), 1e-9)
