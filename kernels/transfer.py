"""From arrays on the host to tensors on the device, without waiting for it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT_BYTES = 16
"""Of each tensor's start: Triton compiles a kernel anew for pointers that are aligned less well."""


def to_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Tensors of host arrays, which must not change afterwards.

    On a CPU they share the arrays' memory. Elsewhere all arrays go through one pinned buffer in one
    copy, so that the host does not wait: a copy from pageable memory, or `torch.tensor(list,
    device=…)`, waits for everything that the device still has to do.

    Args:
        arrays: contiguous, of one dtype.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    buffer, starts = _packed(arrays, pin=True)
    # torch keeps a pinned buffer from being used again until its copies are done.
    whole = buffer.to(device, non_blocking=True)
    return _split(whole, arrays, starts)


def _packed(arrays: Sequence[NDArray[Any]], pin: bool) -> tuple[Tensor, list[int]]:
    """The arrays one after the other, and where each starts."""
    unit = ALIGNMENT_BYTES // arrays[0].itemsize
    starts, end = [], 0
    for array in arrays:
        starts.append(end)
        end += -(-array.size // unit) * unit
    dtype = torch.from_numpy(arrays[0][:0]).dtype
    buffer = torch.empty(end, dtype=dtype, pin_memory=pin)
    host = buffer.numpy()
    for array, start in zip(arrays, starts, strict=True):
        host[start : start + array.size] = array.ravel()
    return buffer, starts


def _split(whole: Tensor, arrays: Sequence[NDArray[Any]], starts: Sequence[int]) -> list[Tensor]:
    return [
        whole[start : start + math.prod(array.shape)].view(array.shape)
        for array, start in zip(arrays, starts, strict=True)
    ]
