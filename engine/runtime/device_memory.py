"""How much of a GPU's memory work takes, as torch and the driver count it."""

from typing import Protocol

import torch


class DeviceMemory(Protocol):
    """What can be asked before and after work that is to be measured."""

    def settle(self) -> None:
        """Wait for the device, give back what only the allocator keeps, and forget the peak."""
        ...

    def reserved(self) -> int:
        """Bytes that the allocator holds now, used or not."""
        ...

    def peak(self) -> int:
        """Most bytes that it held since `settle`."""
        ...

    def taken(self) -> int:
        """Bytes of the device that are not free: what the driver keeps for graphs, too."""
        ...


class CudaMemory:
    """Of one GPU and this process; `taken` is of all processes."""

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
