"""The GPU memory that work takes, as torch and the driver count it."""

from typing import Protocol

import torch


class DeviceMemory(Protocol):
    """The measurements to take before and after work."""

    def settle(self) -> None:
        """Wait for the device, free the memory that only the allocator holds, and reset the
        peak."""
        ...

    def reserved(self) -> int:
        """Return the bytes that the allocator holds now, used or not."""
        ...

    def peak(self) -> int:
        """Return the most bytes that the allocator has held since `settle`."""
        ...

    def taken(self) -> int:
        """Return the bytes of the device that are not free, including the driver's memory for
        graphs."""
        ...


class CudaMemory:
    """The memory of one GPU for this process; `taken` counts all processes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def settle(self) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def reserved(self) -> int:
        return torch.cuda.memory_reserved(self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_reserved(self._device)

    def taken(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free
