"""The interface of a text model's encoder for pictures."""

from typing import Protocol

from torch import Tensor


class PictureEncoder(Protocol):
    """Vision tower and projector of a model. `CausalLM.picture_encoder` holds it, or None."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Compute the states of crops; those of a crop have the same bits whatever is beside it.

        Args:
            pixels: [N, S, S, 3] uint8, on the model's device.

        Returns:
            [N, L, C] in the model's dtype: what enters the decoder in place of L looked-up rows
            (after the scaling of embeddings, if the family has one).
        """
        ...
