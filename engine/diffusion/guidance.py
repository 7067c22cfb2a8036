"""Combines the predictions of a drawing's branches into one.

Predictions may be of noise, v, flow or x0: at fixed latents these are affine in each other with
equal coefficients for all branches, so the linear combinations below are the same in each space.
All tensors are `[1, C, h, w]` fp32.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """The guidance of a request.

    `start` and `end` are shares of the steps, counted as diffusers' guiders count them: of N steps,
    those from int(start * N) on and before int(end * N) are guided. With equal shares, none is.
    """

    scale: float = 1.0
    image_scale: float = 1.0
    rescale: float = 0.0
    start: float = 0.0
    end: float = 1.0

    def acts_at(self, step: int, num_steps: int) -> bool:
        """Whether this step, counted from 0, is guided."""
        first, end = self._interval(num_steps)
        return first <= step < end

    def acts_within(self, num_steps: int) -> bool:
        """Whether any of the steps is guided."""
        first, end = self._interval(num_steps)
        return first < end

    def _interval(self, num_steps: int) -> tuple[int, int]:
        return int(self.start * num_steps), int(self.end * num_steps)


def is_off(scale: float) -> bool:
    """Whether guidance is off: at scale 1 the unconditional branch has no effect and is not
    computed."""
    return math.isclose(scale, 1.0)


def combine_cfg(
    conditional: torch.Tensor,
    unconditional: torch.Tensor,
    scale: float,
    rescale: float = 0.0,
    patch: int = 0,
) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, in Imagen's form), then guidance rescale.

    Args:
        patch: the side of patches that keep the norm of the conditional prediction; 0 is none.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if patch:
        guided = with_norms(guided, conditional, patch)
    return rescaled(guided, conditional, rescale) if rescale else guided


def combine_dual(
    full: torch.Tensor,
    image_only: torch.Tensor,
    unconditional: torch.Tensor,
    scale: float,
    image_scale: float,
    rescale: float = 0.0,
) -> torch.Tensor:
    """InstructPix2Pix's guidance by text and image (Brooks et al. 2023, equation 3)."""
    guided = (
        unconditional + image_scale * (image_only - unconditional) + scale * (full - image_only)
    )
    return rescaled(guided, full, rescale) if rescale else guided


def with_norms(guided: torch.Tensor, conditional: torch.Tensor, patch: int) -> torch.Tensor:
    """Give each patch, of `patch` by `patch` cells in all channels, the conditional prediction's
    norm."""
    ours, wanted = (
        torch.nn.functional.pixel_unshuffle(one, patch).norm(dim=1, keepdim=True)
        for one in (guided, conditional)
    )
    return guided * torch.nn.functional.interpolate(wanted / ours, scale_factor=patch)


def rescaled(guided: torch.Tensor, conditional: torch.Tensor, phi: float) -> torch.Tensor:
    """Restore the conditional prediction's standard deviation (Lin et al. 2023, section 3.4)."""
    dims = tuple(range(1, guided.ndim))
    ratio = conditional.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return phi * guided * ratio + (1 - phi) * guided
