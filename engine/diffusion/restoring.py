"""Redrawing a large image tile by tile: a `Stage` around the denoising of the whole.

All tiles are windows on one canvas of latents, with one noise. In each timestep they are denoised a
few at a time, and the mean of their predictions, where they overlap, takes the canvas a step on
(MultiDiffusion, Bar-Tal et al. 2023, arXiv:2302.08113): so there are no seams between them.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from engine.diffusion.decoding import finite
from engine.diffusion.denoising import Denoising, denoise_rows
from engine.diffusion.families.family import Family, Row
from engine.diffusion.tasks.pixels import from_tensor
from engine.diffusion.tiling import Tiling, Window
from engine.image_types import Examined, Pixels

_TILES_PER_STEP = 4
"""Others wait no longer than that for their turn."""


@dataclass(slots=True, kw_only=True, eq=False)
class Restoring:
    """Where one image is.

    Attributes:
        canvas: the denoising of the whole, which never computes by itself.
        tiling: of its latents.
        num_done: tiles of the present timestep that have their predictions.
        sums: of these, weighted, one for each guidance branch.
    """

    canvas: Denoising
    tiling: Tiling
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
        return self.canvas.num_rows * len(self._windows())

    @property
    def num_pixels(self) -> int:
        height, width = self._tile_pixels()
        return height * width

    @property
    def num_steps(self) -> int:
        return self.canvas.num_steps * -(-len(self.tiling.windows) // _TILES_PER_STEP)

    @property
    def step(self) -> int:
        per_timestep = -(-len(self.tiling.windows) // _TILES_PER_STEP)
        return self.canvas.step * per_timestep + self.num_done // _TILES_PER_STEP

    def compute(self, stages: Sequence["Restoring"]) -> list[list[torch.Tensor]]:
        """What the denoiser says to the rows of each."""
        rows = [stage.rows() for stage in stages]
        return denoise_rows(self.canvas.family, self.canvas.denoiser_key, rows)

    def rows(self) -> list[Row]:
        """The next tiles', all guidance branches of one after the other."""
        height, width = self._tile_pixels()
        whole = self.canvas.rows()
        return [
            replace(row, latents=row.latents[(..., *window)], width=width, height=height)
            for window in self._windows()
            for row in whole
        ]

    def advance(self, outcome: Sequence[torch.Tensor]) -> None:
        """Take these predictions in; after the last tile's, take the canvas a step on."""
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
            predictions = [total / weights for total in self.sums]
            self.num_done, self.sums = 0, []
            self.canvas.advance(predictions)

    def result(self) -> Callable[[], Pixels | Examined]:
        canvas = self.canvas
        return partial(
            _decode, canvas.family, canvas.final(), self.tiling, canvas.preparation.finish
        )

    def preview(self) -> Callable[[], Pixels] | None:
        return self.canvas.preview()

    def _windows(self) -> tuple[Window, ...]:
        return self.tiling.windows[self.num_done : self.num_done + _TILES_PER_STEP]

    def _tile_pixels(self) -> tuple[int, int]:
        factor = self.canvas.family.facts.vae_factor
        height, width = self.tiling.tile_size
        return height * factor, width * factor


def encode_tiles(family: Family, image: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Latents `[1, C, h, w]` of an image `[1, 3, H, W]` in [-1, 1], a tile at a time, merged.

    They are the modes of what the autoencoder says: noise would not agree where tiles overlap.
    """
    pixels = tiling.scaled(family.facts.vae_factor)
    return tiling.merged(
        family.encode_image(image[(..., *window)], None) for window in pixels.windows
    )


def _decode(
    family: Family,
    latents: torch.Tensor,
    tiling: Tiling,
    finish: Callable[[Pixels], Pixels | Examined],
) -> Pixels | Examined:
    latents = finite(latents, "latents")
    pixels = tiling.scaled(family.facts.vae_factor)
    picture = pixels.merged(family.decode(latents[(..., *window)]) for window in tiling.windows)
    return finish(from_tensor(finite(picture, "a picture")[0]))
