"""Inpainting in the space of the finished picture: what the mask protects is the input's own.

At every step the model sees, outside the mask, the input with as much noise as the sample has, and
its prediction there is replaced by the one that leads to the input. So every noise schedule stays
right, those that remember earlier predictions too; blending after the step, as diffusers'
pipelines do, leaves unblended ones in their memory.
"""

import torch

from engine.diffusion.noise_schedule import NoiseSchedule


class LatentBlend:
    """One image's protected part. Stateless: every method may be called any number of times.

    With the mask m of a step, z0 the input's latents and n its noise, a sample becomes
    `x·m + noised(z0, n)·(1-m)`, and the picture that a prediction implies `x0·m + z0·(1-m)`. As
    predictions are affine in x0, the latter is done on predictions, exact under m = 1. The noise is
    fixed, so that a prediction of noise outside the mask is the same at every step.

    A hard mask protects the cells of level 0. A soft one moves (differential diffusion, Levin and
    Fried 2023, arXiv 2306.00950): a cell of level c joins what is redrawn once the share of steps
    done reaches 1 - c, so that little of its input is lost at small c.

    Args:
        mask: `[N or 1, 1, h, w]` in [0, 1], 1 where to redraw.
        image_latents: z0, `[N, C, h, w]`.
        noise: n, of z0's shape.
        soft: whether levels between 0 and 1 count.
        first_position: where the schedule starts to run; the share of steps counts from it.
    """

    def __init__(
        self,
        mask: torch.Tensor,
        image_latents: torch.Tensor,
        noise: torch.Tensor,
        *,
        soft: bool = False,
        first_position: int = 0,
    ) -> None:
        self._levels = mask
        self._image = image_latents
        self._noise = noise
        self._soft = soft
        self._first = first_position
        self._redrawn = mask > 0

    def input(self, sample: torch.Tensor, schedule: NoiseSchedule, position: int) -> torch.Tensor:
        """The sample as the schedule and the denoiser are to see it at this position."""
        protected = schedule.noised(self._image, self._noise, position)
        return torch.where(self._mask(schedule, position), sample, protected)

    def prediction(
        self,
        prediction: torch.Tensor,
        sample: torch.Tensor,
        schedule: NoiseSchedule,
        position: int,
    ) -> torch.Tensor:
        """A prediction on `input`'s sample that leads to the input outside the mask."""
        sigma = schedule.scales(position)[1]
        if sigma == 0:
            # The sample is the finished picture, which no prediction of noise can change.
            return prediction
        protected = schedule.from_x0(self._image, sample, position)
        return torch.where(self._mask(schedule, position), prediction, protected)

    def result(self, sample: torch.Tensor) -> torch.Tensor:
        """The finished latents, exactly the input's where nothing was to change."""
        return torch.where(self._redrawn, sample, self._image)

    def _mask(self, schedule: NoiseSchedule, position: int) -> torch.Tensor:
        if not self._soft:
            return self._redrawn
        run = max(1, schedule.num_positions - self._first)
        threshold = 1.0 - (position - self._first) / run
        return self._redrawn & (self._levels >= threshold)
