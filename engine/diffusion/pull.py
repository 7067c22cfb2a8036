"""Restoration guidance: what is drawn is pulled towards the input while there is much noise.

As in SUPIR (Yu et al. 2024, arXiv:2401.13627, section 3.3): the picture that a prediction implies
moves to the input's by a share that falls with the noise. So the input decides the coarse, which is
settled first, and the model the fine.
"""

import torch

from engine.diffusion.noise_schedule import NoiseSchedule

_MOST_NOISE = 14.6146
"""Of latents of unit signal, where Stable Diffusion's schedules start; above it more makes no
difference."""
_LEAST_NOISE = 0.05
"""Steps that end below it are free."""


class LatentPull:
    """One image's pull; in place of a `blending.LatentBlend`. Stateless.

    Args:
        image_latents: of the input, `[N, C, h, w]`.
        exponent: the share is the noise of a step, relative to the first step's, to this power.
        first_timestep_index: where the schedule starts to run.
    """

    def __init__(
        self, image_latents: torch.Tensor, exponent: float, first_timestep_index: int
    ) -> None:
        self._image = image_latents
        self._exponent = exponent
        self._first = first_timestep_index

    def input(self, latents: torch.Tensor, schedule: NoiseSchedule, index: int) -> torch.Tensor:
        """The latents as they are."""
        return latents

    def prediction(
        self,
        prediction: torch.Tensor,
        latents: torch.Tensor,
        schedule: NoiseSchedule,
        index: int,
    ) -> torch.Tensor:
        """The prediction whose picture is nearer to the input's."""
        if noise_of(schedule, index) == 0 or noise_of(schedule, index + 1) < _LEAST_NOISE:
            return prediction
        share = (noise_of(schedule, index) / noise_of(schedule, self._first)) ** self._exponent
        x0 = schedule.to_x0(prediction, latents, index)
        pulled = (1 - share) * x0 + share * self._image
        return schedule.from_x0(pulled, latents, index)

    def result(self, latents: torch.Tensor) -> torch.Tensor:
        """The finished latents as they are."""
        return latents


def noise_of(schedule: NoiseSchedule, index: int) -> float:
    """At a timestep, of latents scaled to unit signal; at most `_MOST_NOISE`."""
    signal, sigma = schedule.scales(index)
    return min(_MOST_NOISE, sigma / signal) if signal > 0 else _MOST_NOISE
