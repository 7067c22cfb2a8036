"""Randomises the vectors of transformers' models."""

from typing import Any

import torch


@torch.no_grad()
def randomise_vectors(model: Any, spread: float = 0.2) -> None:
    """Randomise norms and biases. transformers starts them at 1 and 0, which would hide that they
    are ignored."""
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name.endswith("bias"))
    for name, parameter in (*model.named_parameters(), *buffers):
        if parameter.ndim == 1 or name.endswith("bias"):
            parameter.normal_(0.0 if name.endswith("bias") else 1.0, spread)
