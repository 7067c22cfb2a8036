"""The tensor-parallel ranks of a model, and this process's place among them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from engine.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """A rank of `size`: heads and MLP columns are divided between ranks; the rest is on every
    rank."""

    rank: int = 0
    size: int = 1
    all_reduce: Callable[[Tensor], Tensor] | None = None
    """Sums a tensor over the ranks; required when there are several."""

    def share(self, total: int, what: str) -> int:
        """Return this rank's part of `total` equal things.

        Raises:
            ModelLoadError: they cannot be divided evenly.
        """
        if total % self.size:
            raise ModelLoadError(
                f"{total} {what} cannot be divided between {self.size} ranks; "
                f"use a tensor_parallel_size that divides {total}"
            )
        return total // self.size

    def cut(self, tensor: Tensor, axis: int, name: str) -> Tensor:
        """Return a view of this rank's part of a checkpoint tensor along an axis.

        Raises:
            ModelLoadError: the tensor cannot be divided evenly.
        """
        if tensor.shape[axis] % self.size:
            raise ModelLoadError(
                f"{name} of shape {tuple(tensor.shape)} cannot be divided between {self.size} "
                f"ranks; use a smaller tensor_parallel_size"
            )
        return tensor.chunk(self.size, axis)[self.rank]

    def sum(self, partial: Tensor) -> Tensor:
        """Add up the ranks' partial results."""
        return partial if self.all_reduce is None else self.all_reduce(partial)


SINGLE = TensorParallel()
