"""DoRA in image models: changes that also set how long the rows of the updated weights are.

`y = g · (W + Δ) x + bias` with `g = m / ‖W + Δ‖` for each output, Δ with alpha in it. With a
request's scale s that is `s` of the way from the base: 0 is the base, 1 what PEFT computes.

Paper: Liu et al. 2024, arXiv:2402.09353.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from engine.errors import ModelLoadError
from engine.lora.images.changes import Change, Layer, scaled

INPUTS_AT_ONCE = 256
"""Of a packed layer, whose weights are looked at between two steps."""
_HOT = 256.0
"""A power of two, large enough that a bias of some size does not drown the weight."""


@dataclass(frozen=True, slots=True)
class GatedChange:
    """Of one module: a change of its output, and what its whole output is multiplied by."""

    layer: Layer
    change: Change
    less_one: Tensor
    """[out] fp32: the factors, less one."""
    bias: Tensor | None
    """[out] fp32, the module's own, which is not multiplied."""

    def with_output(self, x: Tensor, y: Tensor, scales: Tensor) -> Tensor:
        """What it adds to the module's output y.

        Args:
            x, scales: see `Change.__call__`.
        """
        gate, own = self._along(self.less_one), y.float()
        if self.bias is not None:
            own = own - self._along(self.bias)
        update = self.change(x, scales).float()
        return (update + update * gate + scaled(own * gate, scales)).to(y.dtype)

    def _along(self, numbers: Tensor) -> Tensor:
        return numbers.view(-1, 1, 1) if self.layer.is_map else numbers


@dataclass(frozen=True, slots=True)
class Gated:
    """Of a layer that several modules may be: the model's and its fine-tunes."""

    changes: tuple[GatedChange, ...]


@dataclass(frozen=True, slots=True)
class Lengths:
    """A change with the lengths that the rows of the updated weights shall have."""

    name: str
    layer: Layer
    change: Change
    magnitude: Tensor
    """[out] fp32."""

    def gated(self, modules: Sequence[nn.Module]) -> Gated:
        """What that comes to with modules that have plain weights.

        Raises:
            ModelLoadError: a row has no length.
        """
        return Gated(tuple(self._of_plain(module) for module in modules))

    def gating(self, modules: Sequence[nn.Module], dtype: torch.dtype) -> Iterator[Gated | None]:
        """The same with any modules, which are asked what they make of single inputs. Pauses with
        None where a step may be taken; the last is the outcome.

        Args:
            dtype: of their inputs.

        Raises:
            ModelLoadError: a row has no length.
        """
        found: list[GatedChange] = []
        update = self.change.matrix().flatten(1)
        for module in modules:
            if is_plain(module):
                found.append(self._of_plain(module))
                continue
            zeros = torch.zeros(INPUTS_AT_ONCE, self.layer.in_features, device=update.device)
            bias = _made(module, zeros[:1].to(dtype))[0]
            squares = torch.zeros_like(bias)
            for first in range(0, self.layer.in_features, INPUTS_AT_ONCE):
                last = min(first + INPUTS_AT_ONCE, self.layer.in_features)
                hot = zeros[: last - first].clone()
                hot.diagonal(first)[:] = _HOT
                columns = (_made(module, hot.to(dtype)) - bias) / _HOT
                squares += (columns + update[:, first:last].T).square().sum(0)
                yield None
            found.append(self._with_norms(squares.sqrt(), bias))
        yield Gated(tuple(found))

    def _of_plain(self, module: nn.Module) -> GatedChange:
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        whole = weight.detach().float().flatten(1) + self.change.matrix().flatten(1)
        own = bias.detach().float() if isinstance(bias, Tensor) else None
        return self._with_norms(whole.norm(dim=1), own)

    def _with_norms(self, norms: Tensor, bias: Tensor | None) -> GatedChange:
        gate = self.magnitude.to(norms.device) / norms
        if not gate.isfinite().all():
            raise ModelLoadError(f"{self.name} has a row of weights without a length")
        return GatedChange(self.layer, self.change, gate - 1, bias)

    def to(self, dtype: torch.dtype, device: torch.device) -> "Lengths":
        """Its change there; lengths stay in fp32."""
        return replace(
            self, change=self.change.to(dtype, device), magnitude=self.magnitude.to(device)
        )


def is_plain(module: nn.Module) -> bool:
    """Whether its weights can be read."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.is_floating_point() and not weight.is_meta


@torch.no_grad()
def _made(module: nn.Module, rows: Tensor) -> Tensor:
    """[n, out] fp32."""
    made: Tensor = module(rows)
    return made.float()
