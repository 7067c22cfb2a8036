"""Memory for the arrays of adapters, all of which a step may read."""

import math

import torch
from torch import Tensor

from engine.lora.numbers import AdapterNumbers
from engine.runtime.huge_pages import huge_zeros

PIECE_BYTES = 64 << 20
_LINE_BYTES = 64


class Arrays:
    """Zeros where the model is. On a CPU they lie side by side in large pieces of
    huge pages: each alone is too small for one. What is left over of a piece is never touched, and
    takes no memory."""

    def __init__(self, numbers: AdapterNumbers, device: torch.device) -> None:
        self.device = device
        self._numbers = numbers
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def zeros(self, *shape: int) -> Tensor:
        """New ones in the model's type."""
        return self._zeros(shape, self._numbers.dtype)

    def rows(self, num_adapters: int, rank: int, length: int) -> Tensor:
        """[L, r, length], or packed if adapters are."""
        shape = (num_adapters, *self._numbers.shape(rank, length))
        return self._zeros(shape, self._numbers.kept_dtype)

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=self.device)
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes > len(self._piece) - self._used:
            piece = huge_zeros(max(PIECE_BYTES, num_bytes))
            self._piece, self._used = torch.frombuffer(piece, dtype=torch.uint8), 0
        found = self._piece[self._used : self._used + num_bytes]
        self._used += -(-num_bytes // _LINE_BYTES) * _LINE_BYTES
        return found.view(dtype).view(shape)
