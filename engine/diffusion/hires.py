"""The second pass over an image, which enlarges the first pass's result and redraws part of it.

It draws like an image-to-image request, but gets its image from the first pass. It begins with the
seed's own noise of the new size, so a client that sends the enlarged picture back gets the same
result. It does not need the first pass any more, and shares steps with other drawings of its size.
"""

from collections.abc import Callable
from dataclasses import replace

from engine.contract.draw import Enlarging, ImageRequest
from engine.contract.pixels import Pixels
from engine.diffusion.denoising import Denoising
from engine.diffusion.drawing_start import DrawingStart, start_of
from engine.diffusion.families.family import Family
from engine.diffusion.stage import Stage
from engine.diffusion.tasks.enlarge import enlarge_latents, enlarge_picture
from engine.diffusion.tasks.prepare import Preparation, prepare, prepare_without_image
from engine.errors import InvalidParameter

Denoise = Callable[[Preparation, DrawingStart], Denoising]
"""Makes a stage from its start."""


class Redrawing:
    """The second pass of one image, a stage of its own.

    Args:
        request: the second pass as a request of its own, without its image.
        seed: the image's own seed.

    Raises:
        InvalidParameter: the model cannot draw that size, or the schedule has fewer steps.
    """

    def __init__(
        self,
        family: Family,
        request: ImageRequest,
        enlarging: Enlarging,
        seed: int,
        denoise: Denoise,
    ) -> None:
        self._family = family
        self._request = request
        self._enlarging = enlarging
        self._seed = seed
        self._denoise = denoise
        try:
            self._without_image = prepare_without_image(request.params, family.facts)
            self._num_steps = self._count_steps()
        except InvalidParameter as error:
            raise InvalidParameter(f"hires: {error}", param=f"hires.{error.param}") from None

    @property
    def num_steps(self) -> int:
        """The number of the stage's steps."""
        return self._num_steps

    @property
    def needs_picture(self) -> bool:
        """Whether the stage begins with the decoded picture."""
        return not self._enlarging.is_of_latents

    def begin(self, stage: Stage, picture: Pixels | None) -> Denoising:
        """The stage before its first step, from the first pass's latents or its picture."""
        params, clean = self._request.params, None
        preparation = self._without_image
        if picture is None:
            assert isinstance(stage, Denoising)
            latents, factor = stage.final(), self._family.facts.vae_factor
            cells = (params.width // factor, params.height // factor)
            clean = enlarge_latents(latents, *cells, self._enlarging)
        else:
            image = enlarge_picture(picture, params.width, params.height, self._enlarging)
            preparation = prepare(replace(self._request, images=[image]), self._family.facts)
        start = start_of(self._family, params, preparation, self._seed, clean=clean)
        return self._denoise(preparation, start)

    def _count_steps(self) -> int:
        params = self._request.params
        steps = params.num_inference_steps
        schedule = self._family.new_noise_schedule(
            params.scheduler, steps, params.width, params.height
        )
        begin = schedule.start_of(params.share, steps) if params.share < 1.0 else 0
        return schedule.num_timesteps - begin
