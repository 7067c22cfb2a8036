"""Embeds timesteps for a denoiser and applies activations, row by row."""

import functools

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import Timesteps
from torch import nn

from engine.diffusion.families.rows import number_by_number

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
    """`SiLU`, with the same bits for a row in any company."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply SiLU to `[R, ...]`; the shape stays."""
        return silu(x)


def silu(x: torch.Tensor) -> torch.Tensor:
    """Compute `x * sigmoid(x)`; on a CPU a row has the same bits in any company."""
    return number_by_number(F.silu, x) if x.is_cpu else F.silu(x)
