"""Restoration guidance, which pulls the drawing towards the input while there is much noise.

As in SUPIR (Yu et al. 2024, arXiv:2401.13627, section 3.3), the picture that a prediction implies
moves towards the input by a share that falls with the noise. The input thus decides the coarse
structure, which is settled first, and the model decides the fine detail.
"""

import torch

from engine.diffusion.noise_schedule import NoiseSchedule

_MOST_NOISE = 14.6146
"""The noise, for latents of unit signal, at which Stable Diffusion's schedules start; larger values
count as this one."""
_LEAST_NOISE = 0.05
"""The noise below which steps are not pulled."""


class LatentPull:
    """The pull of one image, used in place of a `blending.LatentBlend`. Stateless.

    Args:
        image_latents: the input's latents, `[N, C, h, w]`.
        exponent: the share is a step's noise relative to the first step's, to this power.
        first_timestep_index: the index at which the schedule starts.
    """

    def __init__(
        self, image_latents: torch.Tensor, exponent: float, first_timestep_index: int
    ) -> None:
        self._image = image_latents
        self._exponent = exponent
        self._first = first_timestep_index

    def input(self, latents: torch.Tensor, schedule: NoiseSchedule, index: int) -> torch.Tensor:
        """The latents unchanged."""
        return latents

    def prediction(
        self,
        prediction: torch.Tensor,
        latents: torch.Tensor,
        schedule: NoiseSchedule,
        index: int,
    ) -> torch.Tensor:
        """A prediction whose picture is nearer to the input."""
        if noise_of(schedule, index) == 0 or noise_of(schedule, index + 1) < _LEAST_NOISE:
            return prediction
        share = (noise_of(schedule, index) / noise_of(schedule, self._first)) ** self._exponent
        x0 = schedule.to_x0(prediction, latents, index)
        pulled = (1 - share) * x0 + share * self._image
        return schedule.from_x0(pulled, latents, index)

    def result(self, latents: torch.Tensor) -> torch.Tensor:
        """The finished latents unchanged."""
        return latents


def noise_of(schedule: NoiseSchedule, index: int) -> float:
    """The noise at a timestep, for latents scaled to unit signal; at most `_MOST_NOISE`."""
    signal, sigma = schedule.scales(index)
    return min(_MOST_NOISE, sigma / signal) if signal > 0 else _MOST_NOISE
