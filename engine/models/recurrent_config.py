"""The configuration of decoders in which some layers keep a state instead of keys and values."""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from engine.contract.kv_layout import LayerGroup, group_layers
from engine.models.config import ModelConfig


class RecurrentShapes(NamedTuple):
    """What a layer keeps of one text."""

    inputs: tuple[int, int]
    """The last inputs of its convolution, [channels, width - 1], in the model's dtype."""
    state: tuple[int, ...]
    """Its state, in fp32."""

    def num_bytes(self, dtype_bytes: int) -> int:
        """The bytes of one layer and text."""
        return prod(self.inputs) * dtype_bytes + prod(self.state) * 4

    def allocate(
        self, num_slots: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Make the memory of one layer for several texts, [num_slots, …] each."""
        return (
            torch.empty((num_slots, *self.inputs), dtype=dtype, device=device),
            torch.empty((num_slots, *self.state), dtype=torch.float32, device=device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentConfig(ModelConfig):
    """A `ModelConfig` with layers that keep a state."""

    recurrent_layers: tuple[int, ...]
    shapes: RecurrentShapes
    attending_layers: tuple[int, ...] | None = None
    """The layers with keys and values; None for all that keep no state."""

    @property
    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """See `ModelConfig.layer_groups`; only layers that attend have KV blocks. If none does,
        one group has blocks that hold nothing: they count tokens and name what states follow."""
        attending = self.attending_layers
        if attending is None:
            every = range(self.num_hidden_layers)
            attending = tuple(layer for layer in every if layer not in self.recurrent_layers)
        if not attending:
            return (LayerGroup(()),)
        groups = group_layers([self.layer_windows[layer] for layer in attending])
        return tuple(
            LayerGroup(tuple(attending[at] for at in group.layers), group.window)
            for group in groups
        )

    def recurrent_bytes(self, dtype_bytes: int) -> int:
        """See `ModelConfig.recurrent_bytes`."""
        return len(self.recurrent_layers) * self.shapes.num_bytes(dtype_bytes)


def allocate_states(
    config: ModelConfig, num_slots: int, dtype: torch.dtype, device: torch.device
) -> dict[int, tuple[Tensor, Tensor]]:
    """Make the memory of all layers that keep a state: for each its last inputs and its state,
    [num_slots, …]; empty if there are none.

    A slot is written before it is read, so its first contents do not matter. On a CPU its memory is
    committed when it is first written.
    """
    if not isinstance(config, RecurrentConfig):
        return {}
    return {
        layer: config.shapes.allocate(num_slots, dtype, device) for layer in config.recurrent_layers
    }
