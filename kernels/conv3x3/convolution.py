"""The weights of a 3x3 convolution, arranged for the CPU kernel."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP = 16
"""Outputs whose numbers lie side by side."""
PLACES = 36
"""Multiplications per 4x4 results."""
_TRANSFORM = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)
"""The matrix G of Lavin and Gray's F(4, 3)."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """The weights in fp32 with bias and slopes: negative sums `y < 0` are multiplied by their
    output's slope."""

    weight: Tensor
    """[N, C, 3, 3], the original weight."""
    transformed: Tensor
    """[36, N/16, C, 16], N and C padded with zeros to multiples of 16; four times the weight's
    size."""
    bias: Tensor
    """[N], padded in the same way."""
    slopes: Tensor
    """[N], padded in the same way; 1 leaves sums unchanged."""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, slopes: Tensor | float = 1.0) -> "Convolution":
        """Arrange [N, C, 3, 3] and [N], fp32; slopes are [N], or one for all."""
        outputs, inputs = weight.shape[:2]
        g = _TRANSFORM
        sums = torch.einsum("ij,ncjk,lk->ilcn", g, weight.double(), g).float()
        sums = F.pad(sums, (0, -outputs % STRIP, 0, -inputs % STRIP)).flatten(0, 1)
        strips = sums.reshape(PLACES, sums.shape[1], -1, STRIP).transpose(1, 2).contiguous()
        all_slopes = torch.as_tensor(slopes, dtype=torch.float32).expand(outputs)
        return cls(weight, strips, _padded(bias), _padded(all_slopes))

    @staticmethod
    def num_bytes(outputs: int, inputs: int) -> int:
        """Return the memory of transformed weights, without the original weights."""
        padded = (-(-channels // STRIP) * STRIP for channels in (outputs, inputs))
        return PLACES * math.prod(padded) * torch.float32.itemsize

    @property
    def num_inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def num_outputs(self) -> int:
        return self.weight.shape[0]


def _padded(numbers: Tensor) -> Tensor:
    return F.pad(numbers, (0, -len(numbers) % STRIP)).contiguous()
