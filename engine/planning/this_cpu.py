"""This machine's processor as a chip: how fast it reads memory and multiplies, measured in half a
second."""

import time
from collections.abc import Callable

import torch

from engine.planning.chips import Chip
from kernels import PackedWeight, linear, linear_packed, machine, native

_READ_BYTES = 128 << 20
_SIZE = 1024
"""Inputs and outputs of the product."""
_ROWS = 256
_ROUNDS = 5


@torch.inference_mode()
def this_cpu(free_bytes: int) -> Chip:
    """With all threads that torch uses; other processes' load shows."""
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
    """Of several times, after one for what happens once."""
    run()
    times = []
    for _ in range(_ROUNDS):
        start_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - start_s)
    return max(min(times), 1e-9)
