"""Applies prompt weights to the states of a text encoder, with one function per syntax.

All take one chunk of one prompt, as a mean over more would let prompts and chunks affect each
other. States are `[1, L, D]` fp32 and weights `[L]`, 1 for begin, end and padding.
"""

import math
from collections.abc import Sequence

import torch

MAX_RESTORE = 8.0
"""The largest ratio of means; beyond it the mean after scaling is mostly rounding."""


def scale_keeping_mean(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weight states as in the a1111 syntax: multiply, then restore the whole tensor's mean
    ("Original").

    The mean is not restored if its ratio says nothing about the weights: states of encoders whose
    mean is almost zero would be enlarged, wiped out or inverted.
    """
    scaled = states * weights[None, :, None]
    ratio = float(states.mean() / scaled.mean())
    smallest = 0.5 / max(1.0, float(weights.abs().max()))
    return scaled * ratio if smallest <= ratio <= MAX_RESTORE else scaled


def move_from_empty(
    states: torch.Tensor, empty: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weight states as in the comfy syntax: away from the empty prompt's states at each position.

    Tokens of weight 1 keep their states bit by bit.
    """
    weights = weights[None, :, None]
    return torch.where(weights == 1.0, states, empty + (states - empty) * weights)


def blend_without(
    states: torch.Tensor, without: Sequence[torch.Tensor], weights: Sequence[float]
) -> torch.Tensor:
    """Weight states below 1 as in the compel syntax: mix in the prompt without each such fragment.

    A fragment of weight w gives the prompt without it a share of tan((1 - w)·π/2) to the prompt's
    1: equal shares at 0.5, and nearly all at 0.
    """
    shares = [1.0, *(math.tan((1.0 - max(weight, 1e-5)) * math.pi / 2) for weight in weights)]
    total = sum(shares)
    blended = states * (shares[0] / total)
    for share, other in zip(shares[1:], without, strict=True):
        blended = blended + other * (share / total)
    return blended
