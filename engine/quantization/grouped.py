"""The same layer of all experts of a mixture, multiplied in one call."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.quantization.int4_groups import GroupPanels
from engine.quantization.panels import PanelsState
from engine.quantization.plain import PlainState
from engine.quantization.products import BlocksProduct
from kernels import ExpertWeights, GgufRows, linear_experts


@dataclass(frozen=True, slots=True)
class GroupedState:
    """The states of the experts' layers together; nothing is copied."""

    weights: ExpertWeights
    int8_activations: bool

    @classmethod
    def of(cls, states: Sequence[object]) -> "GroupedState | None":
        """Combine states; None where no product over experts takes them, so each expert multiplies
        alone."""
        found = [_without_bias(state) for state in states]
        weights = ExpertWeights.together([weight for weight, _ in found])
        kinds = {int8_activations for _, int8_activations in found}
        return None if weights is None or len(kinds) > 1 else cls(weights, kinds.pop())

    def multiply(self, x: Tensor, starts: Tensor, rows: Tensor | None = None) -> Tensor:
        """See `kernels.linear_experts`."""
        return linear_experts(x, self.weights, starts, rows, int8_activations=self.int8_activations)


def _without_bias(state: object) -> tuple[object, bool]:
    """Return a layer's weight, and whether activations are 8-bit integers; None if it is more than
    a weight."""
    if isinstance(state, GroupPanels) and state.order is None:
        state = state.state
    if isinstance(state, BlocksProduct) and state.bias is None and state.order is None:
        return GgufRows(state.rows, state.quant_type), False
    if isinstance(state, PanelsState | PlainState) and state.bias is None:
        if isinstance(state, PanelsState):
            return state.panels, state.int8_activations
        return state.weight, False
    return None, False
