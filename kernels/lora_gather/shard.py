"""The updates of all adapters for neighbouring outputs of a linear layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.lora_gather.packed import RANKS, unpack


@dataclass(frozen=True, slots=True)
class LoraShard:
    """Arrays of all adapters for neighbouring outputs, such as those of one checkpoint tensor.

    Adapters of a lower rank are padded with zeros in a and b.
    """

    first: int
    """Index of the first output in the layer's outputs."""
    outputs: int
    """N, the number of outputs."""
    a: Tensor
    """[L, r, K], r <= 256, each adapter's contiguous; or packed in chunks of ranks (`packed.pack`),
    as b is."""
    b: Tensor
    """[L, r, N], contiguous: transposed, as neighbouring outputs are read together."""
    scales: Tensor
    """[L] fp32."""

    @property
    def arrays(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return a, b and scales."""
        return self.a, self.b, self.scales

    @property
    def is_packed(self) -> bool:
        """Whether a and b have 8 bits per number."""
        return self.a.dtype is torch.uint8

    @property
    def rank(self) -> int:
        """The rank r, rounded up to a whole chunk if a and b are packed."""
        return self.a.shape[1] * (RANKS if self.is_packed else 1)

    def in_fp32(self, adapter: int, inputs: int) -> tuple[Tensor, Tensor]:
        """Return one adapter's [r, K] and [r, N]."""
        a, b = self.a[adapter], self.b[adapter]
        if self.is_packed:
            return unpack(a, b, inputs, self.outputs)
        return a.float(), b.float()

    def is_contiguous(self) -> bool:
        """Whether all arrays are contiguous."""
        return self.a.is_contiguous() and self.b.is_contiguous() and self.scales.is_contiguous()

    def are_contiguous(self) -> bool:
        """Whether each adapter's arrays and the scales are contiguous."""
        parts = (self.a, self.b)
        return self.scales.is_contiguous() and all(
            one.stride(2) == 1 and one.stride(1) == one.shape[2] for one in parts
        )

    def part_of(self, y: Tensor) -> Tensor:
        """Return [T, N], the shard's outputs in those of the layer, [T, ...]."""
        return y.narrow(1, self.first, self.outputs)
