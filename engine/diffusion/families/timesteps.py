"""Timesteps as a denoiser reads them, and activations of what becomes of them, row by row."""

import functools

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import Timesteps
from torch import nn

from engine.diffusion.families.rows import number_by_number

_MOST = 1024
"""Timesteps whose waves are kept: images that take as many steps have the same ones."""


class RowTimesteps(nn.Module):
    """`Timesteps`, each by itself and once."""

    def __init__(self, waves: Timesteps) -> None:
        super().__init__()
        self._waves = waves
        self._one = functools.lru_cache(_MOST)(self._computed)

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        """`[R]` to `[R, C]`."""
        if not timesteps.is_cpu:
            computed: torch.Tensor = self._waves(timesteps)
            return computed
        return torch.cat([self._one(time) for time in timesteps.tolist()])

    def _computed(self, time: float) -> torch.Tensor:
        waves: torch.Tensor = self._waves(torch.tensor([time]))
        return waves


class RowSiLU(nn.Module):
    """`SiLU`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[R, ...]`, also out."""
        return silu(x)


def silu(x: torch.Tensor) -> torch.Tensor:
    """`x * sigmoid(x)`; on a CPU a row has the same bits whatever the others are."""
    return number_by_number(F.silu, x) if x.is_cpu else F.silu(x)
