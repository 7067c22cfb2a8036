"""What all adapters have for some outputs of a linear layer."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoraShard:
    """Arrays of all adapters for neighbouring outputs, such as those of one checkpoint tensor.

    Adapters of a lower rank are padded with zeros in a and b.
    """

    first: int
    """Of the outputs, in the layer's."""
    a: Tensor
    """[L, r, K], contiguous; r <= 256."""
    b: Tensor
    """[L, r, N], contiguous: turned, as neighbouring outputs are read together."""
    scales: Tensor
    """[L] fp32."""

    @property
    def arrays(self) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and scales."""
        return self.a, self.b, self.scales

    def is_contiguous(self) -> bool:
        """Whether all arrays are."""
        return self.a.is_contiguous() and self.b.is_contiguous() and self.scales.is_contiguous()

    def part_of(self, y: Tensor) -> Tensor:
        """[T, N]: its outputs of the layer's, [T, ...]."""
        return y.narrow(1, self.first, self.b.shape[2])
