"""DoRA: adapters that also set the lengths of the rows of the updated weights.

`y = g · (W + s·B·A) x + bias`, with `g = m / ‖W + s·B·A‖` for each output. The norms do not depend
on x, so they are computed once, when the adapter is loaded; B then includes g, and a step only adds
`(g - 1) · (y - bias)`.

Paper: Liu et al. 2024, arXiv:2402.09353.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from engine.errors import ModelLoadError
from engine.lora.arrays import Arrays
from engine.lora.peft_files import Adapter, Gate, Update
from engine.models.layers.embedding import LmHead
from engine.models.layers.linear import Linear
from engine.models.layers.weight_slots import WeightOptions

INPUTS_AT_ONCE = 256
"""Inputs of a layer whose weights are examined between two steps."""
_HOT = 256.0
"""A power of two, large enough that a bias of some size does not drown the weight."""


def read_weights(
    outputs_of: Callable[[Tensor], Tensor],
    num_inputs: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Iterator[tuple[slice, Tensor]]]:
    """Read a layer's weights, whatever their format, from its outputs for single inputs.

    Args:
        outputs_of: computes the layer's outputs, [n, out] fp32, for rows of inputs, [n, in].

    Returns:
        The layer's bias, and some inputs at a time with their weights, [n, out] fp32.
    """

    def outputs(first: int, last: int) -> Tensor:
        rows = torch.zeros(max(1, last - first), num_inputs, dtype=dtype, device=device)
        rows.diagonal(first)[: last - first] = _HOT
        return outputs_of(rows)

    bias = outputs(0, 0)[0]
    firsts = range(0, num_inputs, INPUTS_AT_ONCE)
    pieces = ((first, min(first + INPUTS_AT_ONCE, num_inputs)) for first in firsts)
    return bias, ((slice(*piece), (outputs(*piece) - bias) / _HOT) for piece in pieces)


def check_gate(name: str, *numbers: Tensor) -> None:
    """Check a layer's gate, and numbers that were multiplied by it.

    Raises:
        ModelLoadError: a row of the updated weights has length 0.
    """
    if not all(bool(each.isfinite().all()) for each in numbers):
        raise ModelLoadError(f"{name} has a row of weights with length 0; DoRA cannot scale it")


@dataclass(frozen=True, slots=True)
class Gates:
    """The gates of all adapters for neighbouring outputs. Place 0 is for rows without an
    adapter."""

    less_one: Tensor
    """[L + 1, out] fp32."""
    is_set: Tensor
    """[L + 1]."""
    bias: Tensor
    """[out] fp32, the layer's own."""

    @classmethod
    def empty(cls, num_adapters: int, outputs: int, arrays: Arrays) -> Self:
        """Create the gates of adapters that have none."""
        return cls(
            arrays.zeros(num_adapters + 1, outputs, dtype=torch.float32),
            arrays.zeros(num_adapters + 1, dtype=torch.bool),
            arrays.zeros(outputs, dtype=torch.float32),
        )

    def put(self, slot: int, gate: Gate | None) -> None:
        """Set the gates of the adapter in a slot, replacing those that were there."""
        self.is_set[slot + 1] = gate is not None
        self.less_one[slot + 1] = 0.0 if gate is None else gate.less_one.to(self.bias.device)
        if gate is not None:
            self.bias.copy_(gate.bias)

    def copy_from(self, other: "Gates", count: int) -> None:
        """Copy the gates of the first `count` adapters from other arrays."""
        self.less_one[: count + 1] = other.less_one[: count + 1]
        self.is_set[: count + 1] = other.is_set[: count + 1]
        self.bias.copy_(other.bias)

    def apply(self, y: Tensor, slots: Tensor) -> None:
        """Scale the rows, [T, out], whose adapters have gates; the others keep their bits."""
        places = slots.long() + 1
        whole = y.float()
        scaled = (whole + self.less_one[places] * (whole - self.bias)).to(y.dtype)
        y.copy_(torch.where(self.is_set[places][:, None], scaled, y))


def with_gates(
    adapter: Adapter, layers: Iterable[Linear | LmHead], options: WeightOptions
) -> Generator[None, None, Adapter]:
    """Turn the adapter's magnitudes into gates. Yields where the engine may take a step.

    Raises:
        ModelLoadError: a row of the updated weights has length 0.
    """
    updates = dict(adapter.updates)
    for layer in layers:
        waiting = {
            path: updates[path]
            for path in layer.places
            if path in updates and updates[path].magnitude is not None
        }
        if not waiting:
            continue
        bias, pieces = read_weights(layer.in_fp32, layer.in_features, options.dtype, options.device)
        squares = dict.fromkeys(waiting, torch.zeros(()))
        for inputs, columns in pieces:
            for path, update in waiting.items():
                own = columns[:, layer.places[path]].cpu()
                own = own + update.scale * (update.a[:, inputs].T.float() @ update.b.float())
                squares[path] = squares[path] + own.square().sum(0)
            yield
        for path, update in waiting.items():
            updates[path] = _gated(path, update, squares[path].sqrt(), bias[layer.places[path]])
    return replace(adapter, updates=updates)


def _gated(path: str, update: Update, norms: Tensor, bias: Tensor) -> Update:
    assert update.magnitude is not None
    gate = update.magnitude / norms
    b = (update.b.float() * gate).to(update.b.dtype)
    check_gate(path, gate, b)
    return replace(update, b=b, magnitude=None, gate=Gate(gate - 1, bias.cpu()))
