"""The memory behind the slots of recurrent states. The scheduler decides which slot belongs to
whom."""

import torch

from engine.models.recurrent_config import RecurrentConfig


class RecurrentStorage:
    """The states of all layers that have one.

    A slot is written before it is read, so its first contents do not matter. On a CPU its memory is
    committed when it is first written.
    """

    def __init__(
        self, config: RecurrentConfig, num_slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = {
            layer: config.shapes.allocate(num_slots, dtype, device)
            for layer in config.recurrent_layers
        }
        """For each such layer, its last inputs and its state."""
