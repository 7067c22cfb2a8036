"""Activations whose result for a row has the same bits however many rows there are.

PyTorch's own compute an element by its place in a vector, so bits would depend on how many rows
there are. The gated operations do not; the other factor is 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import geglu, gelu_mul, silu_mul


def gelu(x: Tensor) -> Tensor:
    """The exact one, with the error function: [T, I] → [T, I]."""
    return geglu(torch.cat((torch.ones_like(x), x), -1))


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation by tanh: [T, I] → [T, I]."""
    return gelu_mul(torch.cat((x, torch.ones_like(x)), -1))


def silu(x: Tensor) -> Tensor:
    """[T, I] → [T, I]."""
    return silu_mul(torch.cat((x, torch.ones_like(x)), -1))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": torch.relu,
    "silu": silu,
}
"""By Hugging Face's `hidden_act`."""
