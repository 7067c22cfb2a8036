"""Memory for the arrays of adapters, all of which a step may read."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from engine.lora.numbers import AdapterNumbers
from engine.runtime.huge_pages import lazy_zeros

PIECE_BYTES = 64 << 20
_LINE_BYTES = 64


class Arrays:
    """Zero-filled arrays on the model's device, sized for a number of adapters.

    On a CPU all linear layers of an adapter lie side by side in huge pages, because each alone is
    too small for one. Arrays that no adapter has filled take no memory, so there can be room for
    all adapters that may ever come, and none of them moves when another one is loaded.

    Args:
        num_slots: the largest number of adapters.
        row_bytes: the bytes that one adapter takes in each call of `rows` to come.

    Raises:
        OSError: the process may not have that much address space; `zeros` raises it too.
    """

    def __init__(
        self,
        numbers: AdapterNumbers,
        device: torch.device,
        num_slots: int,
        row_bytes: Iterable[int],
    ) -> None:
        self.device = device
        self.num_slots = num_slots
        self._numbers = numbers
        self._stride = sum(map(_lines, row_bytes))
        """Bytes from one adapter to the next."""
        self._rows = self._piece = torch.empty(0, dtype=torch.uint8)
        self._used_rows = self._used = 0
        if device.type == "cpu" and num_slots * self._stride > 0:
            memory = lazy_zeros(num_slots * self._stride, huge=True)
            self._rows = torch.frombuffer(memory, dtype=torch.uint8)

    def zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Create arrays of zeros, in the model's dtype if none is given."""
        dtype = dtype or self._numbers.dtype
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=self.device)
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes > len(self._piece) - self._used:
            piece = lazy_zeros(max(PIECE_BYTES, num_bytes))
            self._piece, self._used = torch.frombuffer(piece, dtype=torch.uint8), 0
        found = self._piece[self._used : self._used + num_bytes]
        self._used += _lines(num_bytes)
        return found.view(dtype).view(shape)

    def rows(self, rank: int, length: int) -> Tensor:
        """Create an array [L, r, length], packed if adapters are."""
        shape = (self.num_slots, *self._numbers.shape(rank, length))
        dtype = self._numbers.kept_dtype
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=self.device)
        first, size = self._used_rows // dtype.itemsize, self._stride // dtype.itemsize
        self._used_rows += _lines(self._numbers.num_bytes(rank, length))
        return self._rows.view(dtype).as_strided(shape, (size, shape[2], 1), first)


def _lines(num_bytes: int) -> int:
    """Round a number of bytes up to whole cache lines."""
    return -(-num_bytes // _LINE_BYTES) * _LINE_BYTES
