"""What all adapters have for some outputs of a linear layer."""

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
    """Of the outputs, in the layer's."""
    outputs: int
    """N, how many there are."""
    a: Tensor
    """[L, r, K], r <= 256, each adapter's contiguous. Or both packed, in chunks of ranks
    (`packed.pack`)."""
    b: Tensor
    """[L, r, N], contiguous: turned, as neighbouring outputs are read together."""
    scales: Tensor
    """[L] fp32."""

    @property
    def arrays(self) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and scales."""
        return self.a, self.b, self.scales

    @property
    def is_packed(self) -> bool:
        """Whether a and b have 8 bits a number."""
        return self.a.dtype is torch.uint8

    @property
    def rank(self) -> int:
        """r, up to a whole chunk if they are packed."""
        return self.a.shape[1] * (RANKS if self.is_packed else 1)

    def in_fp32(self, adapter: int, inputs: int) -> tuple[Tensor, Tensor]:
        """One adapter's [r, K] and [r, N]."""
        a, b = self.a[adapter], self.b[adapter]
        if self.is_packed:
            return unpack(a, b, inputs, self.outputs)
        return a.float(), b.float()

    def is_contiguous(self) -> bool:
        """Whether all arrays are."""
        return self.a.is_contiguous() and self.b.is_contiguous() and self.scales.is_contiguous()

    def are_contiguous(self) -> bool:
        """Whether each adapter's arrays are, and scales."""
        parts = (self.a, self.b)
        return self.scales.is_contiguous() and all(
            one.stride(2) == 1 and one.stride(1) == one.shape[2] for one in parts
        )

    def part_of(self, y: Tensor) -> Tensor:
        """[T, N]: its outputs of the layer's, [T, ...]."""
        return y.narrow(1, self.first, self.outputs)
