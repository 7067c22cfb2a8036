"""The same layer of all experts of a mixture, multiplied in one call."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.quantization.int4_groups import GroupPanels
from engine.quantization.panels import PanelsState
from engine.quantization.plain import PlainState
from engine.quantization.products import BlocksProduct
from kernels import ExpertWeights, GgufRows, linear_experts


@dataclass(frozen=True, slots=True)
class GroupedState:
    """The states of the experts' layers together; weights are not copied."""

    weights: ExpertWeights
    bias: Tensor | None
    """[experts, outputs] fp32."""
    int8_activations: bool

    @classmethod
    def of(cls, states: Sequence[object]) -> "GroupedState | None":
        """Combine states; None where no product over experts takes them, so each expert multiplies
        alone."""
        weights, biases, kinds = zip(*map(_parts, states), strict=True)
        together = ExpertWeights.together(weights)
        if together is None or len(set(kinds)) > 1:
            return None
        bias = None if biases[0] is None else torch.stack(biases).float()
        return cls(together, bias, kinds[0])

    def multiply(self, x: Tensor, starts: Tensor, rows: Tensor | None = None) -> Tensor:
        """See `kernels.linear_experts`."""
        return linear_experts(
            x, self.weights, starts, rows, self.bias, int8_activations=self.int8_activations
        )


def _parts(state: object) -> tuple[object, Tensor | None, bool]:
    """Return a layer's weight and bias, and whether activations are 8-bit integers; no weight if
    the layer has other parts."""
    if isinstance(state, GroupPanels) and state.order is None:
        state = state.state
    if isinstance(state, BlocksProduct) and state.order is None:
        return GgufRows(state.rows, state.quant_type), state.bias, False
    if isinstance(state, PanelsState):
        return state.panels, state.bias, state.int8_activations
    if isinstance(state, PlainState):
        return state.weight, state.bias, False
    return None, None, False
