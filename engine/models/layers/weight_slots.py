"""Where a checkpoint's tensors go.

A layer with weights is a `WeightOwner`: it names the tensors it needs, takes each as it arrives and
brings them into their final form once it has them all. Nothing is allocated before its tensor is
there, and at no time exist two copies of more than one layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.models.layers.parallel import SINGLE, TensorParallel
from engine.quantization.method import LinearMethod, TensorSpec
from engine.quantization.plain import UnquantizedMethod


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """One tensor that a layer waits for."""

    spec: TensorSpec
    """As it is in the checkpoint, not divided between ranks."""
    load: Callable[[Tensor], None]
    """Takes the tensor. Its memory may be a mapped file: whoever keeps it makes a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOptions:
    """How weights are kept."""

    dtype: torch.dtype
    device: torch.device
    parallel: TensorParallel = SINGLE
    linear_method: Callable[[str], LinearMethod[Any] | None] | None = None
    """Checkpoint name of a linear layer, such as `model.layers.0.mlp.up_proj` → its method, or None
    where weights stay plain."""
    deterministic: bool = False
    """A row's result has the same bits whatever shares the step."""

    def method_for(self, name: str) -> LinearMethod[Any]:
        """How a linear layer keeps its weights."""
        found = self.linear_method(name) if self.linear_method else None
        return found or self.plain_method()

    def plain_method(self) -> UnquantizedMethod:
        """How unquantised weights are kept."""
        return UnquantizedMethod(invariant=self.deterministic)


class WeightOwner(ABC):
    """A module that has weights of its own."""

    @abstractmethod
    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        """Name what the module at `path` needs, by checkpoint name."""

    def process_weights_after_loading(self) -> None:  # noqa: B027 - most owners have nothing to do
        """Called once all slots are filled."""
