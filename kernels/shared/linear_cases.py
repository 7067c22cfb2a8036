"""What the inputs of products with quantised weights have in common."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearCase:
    """`rows` times an [`outputs`, `inputs`] weight."""

    name: str
    rows: int
    outputs: int
    inputs: int
    bias: bool = False
    strided: bool = False
    """Whether rows of x are views of wider ones."""

    def make_x(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Make the rows."""
        width = self.inputs * 2 if self.strided else self.inputs
        return torch.randn(self.rows, width, device=device).to(dtype)[:, : self.inputs]

    def make_bias(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Make the bias, if there is one."""
        return torch.randn(self.outputs, device=device).to(dtype) if self.bias else None
