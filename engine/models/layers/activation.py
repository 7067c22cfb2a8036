"""Activations whose result for a row has the same bits for any number of rows.

PyTorch's own activations compute an element by its place in a vector, so their bits depend on the
number of rows. The gated operations do not; here the other factor is 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from engine.errors import UnsupportedArchitecture
from kernels import geglu, gelu_mul, silu_mul


def gelu(x: Tensor) -> Tensor:
    """Apply the exact GELU, with the error function: [T, I] → [T, I]."""
    return geglu(torch.cat((torch.ones_like(x), x), -1))


def gelu_tanh(x: Tensor) -> Tensor:
    """Apply the tanh approximation of GELU: [T, I] → [T, I]."""
    return gelu_mul(torch.cat((x, torch.ones_like(x)), -1))


def silu(x: Tensor) -> Tensor:
    """Apply SiLU: [T, I] → [T, I]."""
    return silu_mul(torch.cat((x, torch.ones_like(x)), -1))


def relu2(x: Tensor) -> Tensor:
    """Apply the square of ReLU."""
    return torch.relu(x).square_()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": torch.relu,
    "relu2": relu2,
    "silu": silu,
}
"""The activations by Hugging Face's `hidden_act`."""


def activation_named(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation of that `hidden_act`.

    Raises:
        UnsupportedArchitecture: it is unknown.
    """
    if name not in ACTIVATIONS:
        raise UnsupportedArchitecture(
            f"hidden_act {name!r} is not supported; it must be one of {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]
