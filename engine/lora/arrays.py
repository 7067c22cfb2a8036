"""Memory for the arrays of adapters, all of which a step may read."""

import math

import torch
from torch import Tensor

from engine.models.layers.weight_slots import WeightOptions
from engine.runtime.huge_pages import huge_zeros

PIECE_BYTES = 64 << 20
_LINE_BYTES = 64


class Arrays:
    """Zeros in the model's type and where it is. On a CPU they lie side by side in large pieces of
    huge pages: each alone is too small for one. What is left over of a piece is never touched, and
    takes no memory."""

    def __init__(self, options: WeightOptions) -> None:
        self.options = options
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def zeros(self, *shape: int) -> Tensor:
        """New ones."""
        dtype, device = self.options.dtype, self.options.device
        if device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes > len(self._piece) - self._used:
            piece = huge_zeros(max(PIECE_BYTES, num_bytes))
            self._piece, self._used = torch.frombuffer(piece, dtype=torch.uint8), 0
        found = self._piece[self._used : self._used + num_bytes]
        self._used += -(-num_bytes // _LINE_BYTES) * _LINE_BYTES
        return found.view(dtype).view(shape)
