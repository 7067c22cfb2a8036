"""Randomises the vectors of transformers' models."""

from typing import Any

import torch


@torch.no_grad()
def randomise_vectors(model: Any, spread: float = 0.2) -> None:
    """Randomise norms and biases. transformers starts them at 1 and 0, which would hide that they
    are ignored."""
    learned = [
        (name, buffer)
        for name, buffer in model.named_buffers()
        if name.endswith(("bias", "layer_scalar")) and buffer.is_floating_point()
    ]
    for name, tensor in (*model.named_parameters(), *learned):
        if tensor.ndim == 1 or name.endswith("bias"):
            tensor.normal_(0.0 if name.endswith("bias") else 1.0, spread)
