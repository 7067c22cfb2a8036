"""DoRA in image models: changes that also set the lengths of the rows of the updated weights.

`y = g · (W + Δ) x + bias` with `g = m / ‖W + Δ‖` for each output; Δ includes alpha. With a
request's scale s, the result is `s` of the way from the base: 0 is the base, 1 is PEFT's result.

Paper: Liu et al. 2024, arXiv:2402.09353.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from engine.lora.dora import check_gate, read_weights
from engine.lora.images.changes import Change, Layer, scaled


@dataclass(frozen=True, slots=True)
class GatedChange:
    """A change of one module's output with the factors for the whole output."""

    layer: Layer
    change: Change
    less_one: Tensor
    """[out] fp32: the factors, less one."""
    bias: Tensor | None
    """[out] fp32, the module's own bias, which is not multiplied."""

    def with_output(self, x: Tensor, y: Tensor, scales: Tensor) -> Tensor:
        """Compute the addition to the module's output y.

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


Gated = tuple[GatedChange, ...]
"""The gated changes of a layer that several modules may implement: the model's and its
fine-tunes."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """A change with the lengths that the rows of the updated weights must have."""

    name: str
    layer: Layer
    change: Change
    magnitude: Tensor
    """[out] fp32."""

    def gating(
        self, modules: Sequence[nn.Module], dtype: torch.dtype
    ) -> Generator[None, None, Gated]:
        """Compute the gated change for any modules, from their outputs for single inputs. Yields
        where the engine may take a step.

        Args:
            dtype: the dtype of the modules' inputs.

        Raises:
            ModelLoadError: a row has length 0.
        """
        found: list[GatedChange] = []
        update = self.change.matrix().flatten(1)
        for module in modules:
            if is_plain(module):
                found.append(self._of_plain(module))
                continue
            made = partial(_made, module)
            bias, pieces = read_weights(made, self.layer.in_features, dtype, update.device)
            squares = torch.zeros_like(bias)
            for inputs, columns in pieces:
                squares += (columns + update[:, inputs].T).square().sum(0)
                yield
            found.append(self._with_norms(squares.sqrt(), bias))
        return tuple(found)

    def _of_plain(self, module: nn.Module) -> GatedChange:
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        whole = weight.detach().float().flatten(1) + self.change.matrix().flatten(1)
        own = bias.detach().float() if isinstance(bias, Tensor) else None
        return self._with_norms(whole.norm(dim=1), own)

    def _with_norms(self, norms: Tensor, bias: Tensor | None) -> GatedChange:
        gate = self.magnitude.to(norms.device) / norms
        check_gate(self.name, gate)
        return GatedChange(self.layer, self.change, gate - 1, bias)


def is_plain(module: nn.Module) -> bool:
    """Whether the module's weights can be read."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.is_floating_point() and not weight.is_meta


@torch.no_grad()
def _made(module: nn.Module, rows: Tensor) -> Tensor:
    """Compute the module's outputs for the rows, as [n, out] in fp32."""
    made: Tensor = module(rows)
    return made.float()
