"""The places of a checkpoint's tensors in a model.

A layer with weights is a `WeightOwner`: it names the tensors it needs, takes each as it arrives and
brings them into their final form once it has them all. Nothing is allocated before its tensor is
there, and at no time do two copies of more than one layer exist.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
    """The tensor's form in the checkpoint, before it is divided between ranks."""
    load: Callable[[Tensor], None]
    """Takes the tensor. Its memory may be a mapped file, so an owner that keeps it makes a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOptions:
    """The options for storing weights."""

    dtype: torch.dtype
    device: torch.device
    parallel: TensorParallel = SINGLE
    linear_method: Callable[[str], LinearMethod[Any] | None] | None = None
    """The method of a linear layer by its name in the checkpoint, such as
    `model.layers.0.mlp.up_proj`, or None where weights stay plain."""
    deterministic: bool = False
    """Whether a row's result must have the same bits whatever shares the step."""

    def method_for(self, name: str) -> LinearMethod[Any]:
        """Return the method for a linear layer's weights."""
        found = self.linear_method(name) if self.linear_method else None
        return found or self.plain_method()

    def plain_method(self) -> UnquantizedMethod:
        """Return the method for unquantised weights."""
        return UnquantizedMethod(invariant=self.deterministic)


class WeightOwner(ABC):
    """A module that has weights of its own."""

    @abstractmethod
    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        """Name the tensors that the module at `path` needs, by their names in the checkpoint."""

    def process_weights_after_loading(self) -> None:  # noqa: B027 - most owners have nothing to do
        """Finish the weights once all slots are filled."""


def fp32_slots(
    owner: WeightOwner,
    path: str,
    names: dict[str, str],
    shape: tuple[int, ...],
    options: WeightOptions,
) -> dict[str, WeightSlot]:
    """Return the slots of tensors of one shape that the owner at `path` keeps in fp32.

    Args:
        names: the attribute that gets the tensor, by the checkpoint's name below `path`.
    """

    def take(attribute: str, tensor: Tensor) -> None:
        setattr(owner, attribute, tensor.to(options.device, torch.float32, copy=True))

    return {
        f"{path}.{stored}": WeightSlot(TensorSpec(shape=shape), partial(take, attribute))
        for stored, attribute in names.items()
    }
