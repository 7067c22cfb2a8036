"""The stage that redraws a large image tile by tile, around the denoising of the whole.

All tiles are windows on one canvas of latents with one noise. First the image is encoded, a few
tiles at a time. Then in each timestep the tiles are denoised, a few at a time, and the canvas takes
a step with the mean of their predictions where they overlap (MultiDiffusion, Bar-Tal et al. 2023,
arXiv:2302.08113), so there are no seams between them.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from engine.contract.examination import Examined
from engine.contract.pixels import Pixels
from engine.diffusion.decoding import finite
from engine.diffusion.denoising import Denoising, denoise_rows
from engine.diffusion.families.family import Family, Row
from engine.diffusion.pull import LatentPull
from engine.pictures.tensors import from_signed
from engine.pictures.tiles import Tiling, Window

_TILES_PER_STEP = 4
"""The number of tiles in a step, which limits how long others wait for their turn."""


@dataclass(slots=True, kw_only=True, eq=False)
class Restoring:
    """The state of one image.

    Attributes:
        canvas: the denoising of the whole, which never computes by itself.
        tiling: the tiles of its latents.
        image: `[1, 3, H, W]` in [-1, 1]; its latents are the modes of the autoencoder's
            distribution, since random draws would not agree where tiles overlap.
        noise: the noise that is added to the image at the start; None: the canvas starts without
            it.
        pull: the exponent of the `LatentPull`.
        num_done: the number of finished tiles of the present pass. The first pass encodes, the
            others are timesteps.
        sums: the weighted sums of the tiles' latents, or of their predictions for each guidance
            branch.
    """

    canvas: Denoising
    tiling: Tiling
    image: torch.Tensor = field(repr=False)
    noise: torch.Tensor | None = field(repr=False)
    pull: float
    num_done: int = 0
    sums: list[torch.Tensor] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        return "restore"

    @property
    def group(self) -> Hashable:
        return (self.canvas.denoiser_key, self.tiling.tile_size)

    @property
    def num_rows(self) -> int:
        return (self.canvas.num_rows if self._is_encoded else 1) * len(self._windows())

    @property
    def num_pixels(self) -> int:
        height, width = self._tile_pixels()
        return height * width

    @property
    def num_steps(self) -> int:
        return (1 + self.canvas.num_steps) * self._steps_of_pass

    @property
    def step(self) -> int:
        passes = 1 + self.canvas.step if self._is_encoded else 0
        return passes * self._steps_of_pass + self.num_done // _TILES_PER_STEP

    def compute(self, stages: Sequence["Restoring"]) -> list[list[torch.Tensor]]:
        """The denoiser's predictions for each stage's rows, or the autoencoder's latents of its
        tiles."""
        rows = [stage.rows() for stage in stages if stage._is_encoded]
        family, key = self.canvas.family, self.canvas.denoiser_key
        predictions = iter(denoise_rows(family, key, rows) if rows else [])
        return [next(predictions) if stage._is_encoded else stage._encode() for stage in stages]

    def rows(self) -> list[Row]:
        """The rows of the next tiles, with all guidance branches of a tile together."""
        height, width = self._tile_pixels()
        whole = self.canvas.rows()
        return [
            replace(row, latents=row.latents[(..., *window)], width=width, height=height)
            for window in self._windows()
            for row in whole
        ]

    def advance(self, outcome: Sequence[torch.Tensor]) -> None:
        """Take in latents or predictions; after the last tile, advance the canvas by one step."""
        windows = self._windows()
        num_branches = len(outcome) // len(windows)
        if not self.sums:
            self.sums = [torch.zeros_like(self.canvas.latents) for _ in range(num_branches)]
        for index, prediction in enumerate(outcome):
            total = self.sums[index % num_branches]
            self.tiling.add(total, windows[index // num_branches], prediction)
        self.num_done += len(windows)
        if self.num_done == len(self.tiling.windows):
            weights = self.tiling.total_weights(self.sums[0])
            means = [total / weights for total in self.sums]
            self.num_done, self.sums = 0, []
            if self._is_encoded:
                self.canvas.advance(means)
            else:
                self._begin(means[0])

    def result(self) -> Callable[[], Pixels | Examined]:
        canvas = self.canvas
        return partial(
            _decode, canvas.family, canvas.final(), self.tiling, canvas.preparation.finish
        )

    def preview(self) -> Callable[[], Pixels] | None:
        return self.canvas.preview()

    @property
    def _is_encoded(self) -> bool:
        return self.canvas.blend is not None

    @property
    def _steps_of_pass(self) -> int:
        return -(-len(self.tiling.windows) // _TILES_PER_STEP)

    def _encode(self) -> list[torch.Tensor]:
        """Encode the next tiles."""
        family = self.canvas.family
        windows = self.tiling.scaled(family.facts.vae_factor).windows
        chosen = windows[self.num_done : self.num_done + _TILES_PER_STEP]
        return [family.encode_image(self.image[(..., *window)], None) for window in chosen]

    def _begin(self, clean: torch.Tensor) -> None:
        """Begin the canvas with the image's latents."""
        canvas, first = self.canvas, self.canvas.first_timestep_index
        if self.noise is not None:
            canvas.latents = canvas.schedule.noised(clean, self.noise, first)
        canvas.blend = LatentPull(clean, self.pull, first)

    def _windows(self) -> tuple[Window, ...]:
        return self.tiling.windows[self.num_done : self.num_done + _TILES_PER_STEP]

    def _tile_pixels(self) -> tuple[int, int]:
        factor = self.canvas.family.facts.vae_factor
        height, width = self.tiling.tile_size
        return height * factor, width * factor


def _decode(
    family: Family,
    latents: torch.Tensor,
    tiling: Tiling,
    finish: Callable[[Pixels], Pixels | Examined],
) -> Pixels | Examined:
    latents = finite(latents, "latents")
    pixels = tiling.scaled(family.facts.vae_factor)
    picture = pixels.merged(family.decode(latents[(..., *window)]) for window in tiling.windows)
    return finish(from_signed(finite(picture, "a picture")[0]))
