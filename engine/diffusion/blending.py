"""Inpainting within the schedule, which keeps the protected part of the input exactly as it is.

At every step the model sees, outside the mask, the input with as much noise as the latents have,
and its prediction there is replaced by the one that leads to the input. This is right for every
noise schedule, also for those that remember earlier predictions; diffusers' pipelines blend after
the step and so leave unblended predictions in that memory.
"""

import torch

from engine.diffusion.noise_schedule import NoiseSchedule


class LatentBlend:
    """The protected part of one image. Stateless: every method may be called any number of times.

    With the mask m of a step, the input's latents z0 and its noise n, the latents become `x·m +
    noised(z0, n)·(1-m)`, and the picture that a prediction implies `x0·m + z0·(1-m)`. As
    predictions are affine in x0, the latter is applied to predictions, exactly under m = 1. The
    noise is fixed, so that a prediction of noise outside the mask is the same at every step.

    A hard mask protects the cells of level 0. A soft mask grows (differential diffusion, Levin and
    Fried 2023, arXiv 2306.00950): a cell of level c is redrawn once the share of finished steps
    reaches 1 - c, so little of its input is lost at small c.

    Args:
        mask: `[N or 1, 1, h, w]` in [0, 1], 1 where to redraw.
        image_latents: z0, `[N, C, h, w]`.
        noise: n, of z0's shape.
        soft: whether levels between 0 and 1 count.
        first_timestep_index: where the schedule starts to run; the share of steps counts from it.
    """

    def __init__(
        self,
        mask: torch.Tensor,
        image_latents: torch.Tensor,
        noise: torch.Tensor,
        *,
        soft: bool = False,
        first_timestep_index: int = 0,
    ) -> None:
        self._levels = mask
        self._image = image_latents
        self._noise = noise
        self._soft = soft
        self._first = first_timestep_index
        self._redrawn = mask > 0

    def input(self, latents: torch.Tensor, schedule: NoiseSchedule, index: int) -> torch.Tensor:
        """The latents as the schedule and the denoiser should see them at this timestep."""
        protected = schedule.noised(self._image, self._noise, index)
        return torch.where(self._mask(schedule, index), latents, protected)

    def prediction(
        self,
        prediction: torch.Tensor,
        latents: torch.Tensor,
        schedule: NoiseSchedule,
        index: int,
    ) -> torch.Tensor:
        """A prediction for `input`'s latents that leads to the input outside the mask."""
        sigma = schedule.scales(index)[1]
        if sigma == 0:
            # The latents are the finished picture, which no prediction of noise can change.
            return prediction
        protected = schedule.from_x0(self._image, latents, index)
        return torch.where(self._mask(schedule, index), prediction, protected)

    def result(self, latents: torch.Tensor) -> torch.Tensor:
        """The finished latents, which are exactly the input's where nothing should change."""
        return torch.where(self._redrawn, latents, self._image)

    def _mask(self, schedule: NoiseSchedule, index: int) -> torch.Tensor:
        if not self._soft:
            return self._redrawn
        run = max(1, schedule.num_timesteps - self._first)
        threshold = 1.0 - (index - self._first) / run
        return self._redrawn & (self._levels >= threshold)
