"""Tensor-parallel ranks as threads of one process."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from engine.models.layers.parallel import TensorParallel

T = TypeVar("T")


def on_ranks(size: int, compute: Callable[[TensorParallel], T]) -> list[T]:
    """Compute the same on several ranks and return their results. The first error is raised."""
    meeting = threading.Barrier(size, timeout=60)
    brought: list[Tensor] = [torch.empty(0)] * size

    def gather(rank: int, tensor: Tensor) -> list[Tensor]:
        brought[rank] = tensor
        meeting.wait()
        found = [one.clone() for one in brought]
        meeting.wait()
        return found

    def run(rank: int) -> T:
        try:
            return compute(TensorParallel(rank, size, partial(gather, rank)))
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for one in futures if (error := one.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [one.result() for one in futures]
