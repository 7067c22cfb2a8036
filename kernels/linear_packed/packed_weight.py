"""The arrangement of a weight that the CPU kernel reads from front to back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.shared.strip_rows import STRIP, StripRows


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """W [N, K] in strips of 16 outputs, a vector register of fp32 sums, padded with zeros.

        fp32, fp16   [N/16, K, 16]
        bf16         [N/16, K/2, 16, 2]      pairs of inputs: processors multiply two at a time

    bf16 inputs are padded to a multiple of 32, what a matrix unit takes at once.
    """

    data: Tensor
    """The weights in one run of memory, of shape [strips, padded inputs · 16]."""
    out_features: int
    in_features: int
    group: int
    """Inputs that lie side by side: 2 in bf16."""
    padded_inputs: int

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @classmethod
    def pack(cls, weight: Tensor) -> "PackedWeight":
        """Arrange a copy of [N, K], fp32, bf16 or fp16."""
        out_features, in_features = weight.shape
        group = 2 if weight.dtype == torch.bfloat16 else 1
        padded = -(-in_features // 32) * 32 if group == 2 else in_features
        missing = (0, padded - in_features, 0, -out_features % STRIP)
        rows = F.pad(weight, missing) if any(missing) else weight
        strips = rows.reshape(-1, STRIP, padded // group, group).transpose(1, 2).contiguous()
        return cls(strips.view(len(strips), -1), out_features, in_features, group, padded)

    def unpack(self) -> Tensor:
        """Return [N, K] in the original order."""
        strips = self.data.view(len(self.data), -1, STRIP, self.group)
        rows = strips.transpose(1, 2).reshape(-1, self.padded_inputs)
        return rows[: self.out_features, : self.in_features]

    def row_lookup(self) -> Callable[[Tensor], Tensor]:
        """Return a function that looks up rows of the original weight: [T] int64 → [T, K], new
        memory."""
        numbers = self.data.view(torch.int32) if self.group == 2 else self.data
        find = StripRows(numbers, torch.arange(self.padded_inputs // self.group) * STRIP)
        return lambda rows: find(rows).view(self.dtype)[:, : self.in_features].contiguous()
