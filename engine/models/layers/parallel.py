"""The tensor-parallel ranks of a model, and this process's place among them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.errors import ModelLoadError, UnsupportedArchitecture


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """A rank of `size`: heads, MLP columns and the output layer's tokens are divided between ranks;
    the rest is on every rank."""

    rank: int = 0
    size: int = 1
    gather: Callable[[Tensor], list[Tensor]] | None = None
    """Returns the tensors that all ranks give at this point, in the ranks' order; required when
    there are several."""

    def refuse_several(self, what: str) -> None:
        """Refuse to be one of several ranks.

        Raises:
            UnsupportedArchitecture: there are several.
        """
        if self.size > 1:
            raise UnsupportedArchitecture(
                f"{what} cannot be divided between ranks; use a tensor_parallel_size of 1",
                param="tensor_parallel_size",
            )

    def among(self, heads: int) -> "TensorParallel":
        """Return this rank's place where that many key/value heads are divided. If there are fewer
        than ranks, neighbouring ranks have the same one. 0 stands for things that are no heads."""
        if not 0 < heads < self.size or self.size % heads:
            return self
        return replace(self, rank=self.rank * heads // self.size, size=heads)

    def share(self, total: int, what: str) -> int:
        """Return this rank's part of `total` equal things.

        Raises:
            ModelLoadError: they cannot be divided evenly.
        """
        if total % self.size:
            raise ModelLoadError(
                f"{total} {what} cannot be divided between {self.size} ranks; "
                f"use a tensor_parallel_size that divides {total}",
                param="tensor_parallel_size",
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
                f"ranks; use a smaller tensor_parallel_size",
                param="tensor_parallel_size",
            )
        return tensor.chunk(self.size, axis)[self.rank]

    def sum(self, partial: Tensor) -> Tensor:
        """Add up the ranks' partial results in fp32 and in the ranks' order, so that the bits do
        not depend on what else is in the step."""
        if self.gather is None:
            return partial
        total, *others = (one.float() for one in self.gather(partial))
        for other in others:
            total = total + other
        return total.to(partial.dtype)

    def join(self, outputs: Tensor) -> Tensor:
        """Put the ranks' outputs, [T, own], side by side."""
        return outputs if self.gather is None else torch.cat(self.gather(outputs), -1)


SINGLE = TensorParallel()
