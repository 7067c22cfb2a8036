"""Embeds timesteps for a denoiser and applies activations, row by row."""

import functools

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import Timesteps
from torch import nn

from engine.diffusion.families.rows import ONE_PART, number_by_number
from kernels import sigmoid_mul

_MOST = 1024
"""The most timesteps whose waves are kept; images with equal numbers of steps share them."""


class RowTimesteps(nn.Module):
    """`Timesteps`, computed separately and once for each timestep."""

    def __init__(self, waves: Timesteps) -> None:
        super().__init__()
        self._waves = waves
        self._one = functools.lru_cache(_MOST)(self._computed)

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Embed timesteps `[R]` as `[R, C]`."""
        if not timesteps.is_cpu:
            computed: torch.Tensor = self._waves(timesteps)
            return computed
        return torch.cat([self._one(time) for time in timesteps.tolist()])

    def _computed(self, time: float) -> torch.Tensor:
        waves: torch.Tensor = self._waves(torch.tensor([time]))
        return waves


class RowSiLU(nn.Module):
    """`SiLU`, with the same bits for a row in any batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply SiLU to `[R, ...]`; the shape stays."""
        return silu(x)


def silu(x: torch.Tensor) -> torch.Tensor:
    """Compute `x * sigmoid(x)`; on a CPU a row has the same bits in any batch, and with any number
    of threads."""
    if not x.is_cpu:
        return F.silu(x)
    cells = x if x.is_contiguous() else x.movedim(1, -1)
    if x[:1].numel() < ONE_PART or not cells.is_contiguous():
        return number_by_number(F.silu, x)
    # Torch would divide the row among its threads.
    flat = cells.reshape(-1, cells.shape[-1])
    y = sigmoid_mul(flat, flat).view(cells.shape)
    return y if cells is x else y.movedim(-1, 1)
