"""Copies between the host's arrays and the device's tensors, without waiting for the device."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT_BYTES = 16
"""Alignment of each tensor's start; Triton compiles a separate kernel for pointers that are less
aligned."""


def to_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Make tensors of host arrays, which must not change afterwards.

    On a CPU they share the arrays' memory. Elsewhere all arrays go through one pinned buffer in one
    copy, so that the host does not wait: a copy from pageable memory, or `torch.tensor(list,
    device=…)`, waits for all queued work of the device.

    Args:
        arrays: contiguous, of one dtype.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    buffer, starts = _packed(arrays, pin=device.type == "cuda")
    # torch does not reuse a pinned buffer until its copies are done.
    whole = buffer.to(device, non_blocking=True)
    return _split(whole, arrays, starts)


class Milestone:
    """The present point in a device's queue of work. On a CPU it is passed at once."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type != "cpu":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> None:
        """Wait for the work queued before this point, and not for later work."""
        if self._event is not None:
            self._event.synchronize()


class HostCopy:
    """A tensor on its way to the host. A CPU tensor is there already and is not copied."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor
        if tensor.device.type != "cpu":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
        self._copied = Milestone(tensor.device)

    def wait(self) -> Tensor:
        """Return the contents that the tensor had when the copy was ordered."""
        self._copied.wait()
        return self._host


def _packed(arrays: Sequence[NDArray[Any]], pin: bool) -> tuple[Tensor, list[int]]:
    """Return the arrays one after the other, and the start of each."""
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
