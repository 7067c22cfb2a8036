"""The interface of a text model's encoder for pictures."""

from collections.abc import Generator
from typing import Protocol

from torch import Tensor

Encoding = Generator[None, None, Tensor]
"""The states of a crop in the making. Each `next` computes a slice; the last one returns the
states, [L, C] in the model's dtype: what enters the decoder in place of L looked-up rows (after the
scaling of embeddings, if the family has one), with more behind if the model adds some to its first
layers (`RowStates`)."""


class PictureEncoder(Protocol):
    """Vision tower and projector of a model. `CausalLM.picture_encoder` holds it, or None."""

    def begin(self, pixels: Tensor, shape: tuple[int, int] | None = None) -> Encoding:
        """Begin to compute the states of a crop. Nothing is computed before the first `next`.

        Args:
            pixels: [H, W, 3] uint8, on the model's device.
            shape: the numbers of lines and columns of the states; None for a square crop.
        """
        ...


def run_slices(encoding: Encoding, num_slices: int | None = None) -> Tensor | None:
    """Compute slices of an encoding, by default all that are left. Returns the states if it is
    finished."""
    num_left = num_slices
    while num_left is None or num_left > 0:
        try:
            next(encoding)
        except StopIteration as end:
            states: Tensor = end.value
            return states
        num_left = None if num_left is None else num_left - 1
    return None
