"""The weights of a 3x3 convolution, arranged for the CPU kernel."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP = 16
"""Outputs whose numbers lie side by side."""
_TRANSFORMS = {
    torch.float32: torch.tensor(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        dtype=torch.float64,
    ),
    torch.bfloat16: torch.tensor(
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]], dtype=torch.float64
    ),
}
"""The matrices G of Lavin and Gray's F(4, 3) and F(2, 3), by the weights' dtype."""
_DEPTHS = {torch.float32: 1, torch.bfloat16: 2}
"""The inputs that one instruction multiplies for an output."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """The weights in fp32 with bias and slopes: negative sums `y < 0` are multiplied by their
    output's slope."""

    weight: Tensor
    """[N, C, 3, 3], the original weight."""
    transformed: Tensor
    """[36, N/16, C, 16] in fp32, [16, N/16, C/2, 32] in bf16, where two inputs lie side by side
    for each output; N and C padded with zeros to multiples of 16. Four times the weight's size, or
    1.8 times."""
    bias: Tensor
    """[N], fp32, padded in the same way."""
    slopes: Tensor
    """[N], fp32, padded in the same way; 1 leaves sums unchanged."""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, slopes: Tensor | float = 1.0) -> "Convolution":
        """Arrange [N, C, 3, 3], fp32 or bf16, and [N]; slopes are [N], or one for all."""
        outputs, inputs = weight.shape[:2]
        g, depth = _TRANSFORMS[weight.dtype], _DEPTHS[weight.dtype]
        sums = torch.einsum("ij,ncjk,lk->ilcn", g, weight.double(), g).to(weight.dtype)
        sums = F.pad(sums, (0, -outputs % STRIP, 0, -inputs % STRIP)).flatten(0, 1)
        groups = sums.reshape(len(sums), -1, depth, sums.shape[2] // STRIP, STRIP)
        strips = groups.permute(0, 3, 1, 4, 2)
        all_slopes = torch.as_tensor(slopes, dtype=torch.float32).expand(outputs)
        return cls(
            weight, strips.flatten(3).contiguous(), _padded(bias.float()), _padded(all_slopes)
        )

    @staticmethod
    def num_bytes(outputs: int, inputs: int, dtype: torch.dtype) -> int:
        """Return the memory of transformed weights, without the original weights."""
        padded = (-(-channels // STRIP) * STRIP for channels in (outputs, inputs))
        return len(_TRANSFORMS[dtype]) ** 2 * math.prod(padded) * dtype.itemsize

    @property
    def num_inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def num_outputs(self) -> int:
        return self.weight.shape[0]


def _padded(numbers: Tensor) -> Tensor:
    return F.pad(numbers, (0, -len(numbers) % STRIP)).contiguous()
