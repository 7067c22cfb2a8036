"""Estimates the memory of a training from a model's configuration alone.

The model is built from tensors without memory, and one forward pass is run on them. The tensors
that autograd would keep for the backward pass are thus counted exactly, for any architecture. The
rest is arithmetic: an adapter of rank r has r (in + out) numbers of 4 bytes per layer, the same
again for its gradient and twice that for Adam's two means (Kingma and Ba 2015, arXiv:1412.6980).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from engine.contract.orders import Optimizer

_ADAPTER_BYTES = 4
_OPTIMIZER_BYTES: Mapping[Optimizer, int] = {"adamw": 8, "sgd": 4}
"""The bytes per trained number."""
_WORKSPACES = 2
"""The number of extra tensors as large as the largest kept one: its gradient and an intermediate
result."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The bytes of each part, and the number of trained parameters."""

    num_trained: int
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.gradients + self.optimizer + self.activations

    def report(self) -> dict[str, int]:
        return {
            "num_trained": self.num_trained,
            "weights": self.weights,
            "adapter": self.adapter,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
            "total": self.total,
        }


def estimate(
    build: Callable[[], nn.Module],
    loss: Callable[[nn.Module], Tensor],
    optimizer: Optimizer,
) -> MemoryEstimate:
    """Estimate the memory of a training.

    Args:
        build: makes the model with its adapter.
        loss: runs a forward pass of a batch.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        step = _Step(build(), loss)
    trained = [parameter for parameter in step.parameters() if parameter.requires_grad]
    num_trained = sum(parameter.numel() for parameter in trained)
    frozen = sum(map(_num_bytes, step.parameters())) - sum(map(_num_bytes, trained))
    frozen += sum(map(_num_bytes, step.buffers()))
    # On the CPU device, as attention on the meta device keeps other tensors.
    with FakeTensorMode():
        tensors = {
            name: torch.empty(one.shape, dtype=one.dtype, requires_grad=one.requires_grad)
            for name, one in (*step.named_parameters(), *step.named_buffers())
        }
        activations = _kept_bytes(
            lambda: torch.func.functional_call(step, tensors), tensors.values()
        )
    return MemoryEstimate(
        num_trained=num_trained,
        weights=frozen,
        adapter=num_trained * _ADAPTER_BYTES,
        gradients=num_trained * _ADAPTER_BYTES,
        optimizer=num_trained * _OPTIMIZER_BYTES[optimizer],
        activations=activations,
    )


class _Step(nn.Module):
    """A model and its loss in one module, so that its tensors can be replaced."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self) -> Tensor:
        return self._loss(self.model)


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _kept_bytes(forward: Callable[[], Tensor], weights: Iterable[Tensor]) -> int:
    """The bytes that a backward pass needs, without the weights."""
    known = {_storage(weight) for weight in weights}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in known:
            kept[storage] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    # The graph has kept the tensors until here, so that no address was used twice.
    del loss
    return sum(kept.values()) + _WORKSPACES * max(kept.values(), default=0)


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
