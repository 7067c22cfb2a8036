"""What prompt weights do to the states of a text encoder, one function per syntax.

All take one chunk of one prompt: a mean over more would let prompts and chunks change each other.
States are `[1, L, D]` fp32 and weights `[L]`, 1 for begin, end and padding.
"""

import math
from collections.abc import Sequence

import torch

MAX_RESTORE = 8.0
"""Beyond it the mean after scaling is a remainder of cancelling terms, and no measure."""


def scale_keeping_mean(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The a1111 syntax: multiply, then restore the mean over the whole tensor ("Original").

    The mean is left as it comes where its ratio says nothing about the weights: encoders whose
    states average to almost zero would be blown up, extinguished or turned over by it.
    """
    scaled = states * weights[None, :, None]
    ratio = float(states.mean() / scaled.mean())
    smallest = 0.5 / max(1.0, float(weights.abs().max()))
    return scaled * ratio if smallest <= ratio <= MAX_RESTORE else scaled


def move_from_empty(
    states: torch.Tensor, empty: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The comfy syntax: away from the empty prompt's states, each at its position.

    Tokens of weight 1 keep their states bit by bit.
    """
    weights = weights[None, :, None]
    return torch.where(weights == 1.0, states, empty + (states - empty) * weights)


def blend_without(
    states: torch.Tensor, without: Sequence[torch.Tensor], weights: Sequence[float]
) -> torch.Tensor:
    """The compel syntax below weight 1: mix in the prompt with each such fragment masked out.

    A fragment of weight w counts tan((1 - w)·π/2) against the prompt's 1: as much at 0.5, and all
    but alone at 0.
    """
    shares = [1.0, *(math.tan((1.0 - max(weight, 1e-5)) * math.pi / 2) for weight in weights)]
    total = sum(shares)
    blended = states * (shares[0] / total)
    for share, other in zip(shares[1:], without, strict=True):
        blended = blended + other * (share / total)
    return blended
