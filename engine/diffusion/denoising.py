"""The stage that denoises one image, step by step, towards its prompt."""

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from engine.contract.examination import Examined
from engine.contract.pixels import Pixels
from engine.diffusion.blending import LatentBlend
from engine.diffusion.decoding import finite
from engine.diffusion.families.family import Family, Row
from engine.diffusion.guidance import Guidance, combine_cfg, combine_dual, is_off
from engine.diffusion.noise_schedule import NoiseSchedule
from engine.diffusion.prompt.states import PromptCourse
from engine.diffusion.pull import LatentPull
from engine.diffusion.tasks.prepare import Preparation
from engine.lora.images.layers import Uses
from engine.pictures.tensors import from_signed

Finished = TypeVar("Finished")


@dataclass(frozen=True, slots=True, kw_only=True)
class Branches:
    """The denoiser's possible inputs: prompts, with `[1, K, h, w]` image latents beside them.

    Attributes:
        full: prompt and image; always computed.
        image_only: negative prompt and image; for dual guidance.
        unconditional: negative prompt without image; None if guidance is off.
    """

    full: tuple[PromptCourse, torch.Tensor | None]
    image_only: tuple[PromptCourse, torch.Tensor | None] | None = None
    unconditional: tuple[PromptCourse, torch.Tensor | None] | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Denoising:
    """The state of one image within its noise schedule.

    Attributes:
        family: the family whose denoiser and decoder it uses; the same for all images.
        latents: `[1, C, h, w]` fp32 at the schedule's `timestep_index`.
        timestep_index, first_timestep_index: indexes into `schedule.timesteps`.
        noise_level: the noise level of the image beside the latents.
        references: the latents of the reference images, `[1, C, h', w']` each.
        keeps_x0: whether previews were asked for.
        x0: the picture that the newest prediction implies; previews show it.
        adapters: the adapters that the denoiser uses in each of its rows.
    """

    family: Family
    generator: torch.Generator
    schedule: NoiseSchedule
    latents: torch.Tensor
    branches: Branches
    guidance: Guidance
    denoiser_key: Hashable
    preparation: Preparation
    blend: LatentBlend | LatentPull | None = None
    first_timestep_index: int = 0
    timestep_index: int = 0
    noise_level: int = 0
    references: tuple[torch.Tensor, ...] = ()
    keeps_x0: bool = False
    x0: torch.Tensor | None = field(default=None, repr=False)
    adapters: Uses = ()

    @property
    def name(self) -> str:
        return "denoise"

    @property
    def num_steps(self) -> int:
        """The number of denoiser calls from start to end."""
        return self.schedule.num_timesteps - self.first_timestep_index

    @property
    def step(self) -> int:
        """The number of finished denoiser calls."""
        return self.timestep_index - self.first_timestep_index

    @property
    def group(self) -> Hashable:
        sizes = (tuple(reference.shape[2:]) for reference in self.references)
        return (self.denoiser_key, tuple(self.latents.shape[1:]), *sizes)

    @property
    def num_rows(self) -> int:
        """The rows of the next step: one for each guidance branch that acts in it."""
        return len(self._active())

    @property
    def num_pixels(self) -> int:
        """The pixels of the picture and of the reference images, which the denoiser also sees."""
        cells = sum(reference.shape[2:].numel() for reference in self.references)
        factor = self.family.facts.vae_factor
        return self.preparation.width * self.preparation.height + cells * factor**2

    def compute(self, stages: Sequence["Denoising"]) -> list[list[torch.Tensor]]:
        """The denoiser's predictions for the rows of each stage."""
        rows = [stage.rows() for stage in stages]
        return denoise_rows(self.family, self.denoiser_key, rows)

    def rows(self) -> list[Row]:
        """The next step's rows, in the order in which `advance` expects their predictions."""
        latents = self._input()
        scaled = self.schedule.scale(latents, self.timestep_index)
        timestep = self.schedule.timesteps[self.timestep_index]
        return [
            Row(
                latents=scaled,
                timestep=timestep,
                prompt=course.at(self.step, self.num_steps),
                image_latents=image,
                references=self.references,
                guidance_scale=self.guidance.scale,
                width=self.preparation.width,
                height=self.preparation.height,
                noise_level=self.noise_level,
                adapters=self.adapters,
            )
            for course, image in self._active()
        ]

    def advance(self, outcome: Sequence[torch.Tensor]) -> None:
        """Take the step given by these predictions, `[1, C, h, w]` each."""
        latents = self._input()
        prediction = self._combine(outcome)
        if self.blend is not None:
            prediction = self.blend.prediction(
                prediction, latents, self.schedule, self.timestep_index
            )
        if self.keeps_x0:
            self.x0 = self.schedule.to_x0(prediction, latents, self.timestep_index)
        self.latents = self.schedule.step(prediction, self.timestep_index, latents, self.generator)
        self.timestep_index += 1

    def result(self) -> Callable[[], Pixels | Examined]:
        return partial(_decode, self.family.decode, self.final(), self.preparation.finish)

    def preview(self) -> Callable[[], Pixels] | None:
        if self.x0 is None:
            return None
        return partial(_decode, self.family.preview, self.x0, self.preparation.show)

    def final(self) -> torch.Tensor:
        """The finished latents, with the protected part taken from the input."""
        return self.latents if self.blend is None else self.blend.result(self.latents)

    def _input(self) -> torch.Tensor:
        if self.blend is None:
            return self.latents
        return self.blend.input(self.latents, self.schedule, self.timestep_index)

    def _active(self) -> list[tuple[PromptCourse, torch.Tensor | None]]:
        branches, guidance = self.branches, self.guidance
        if branches.unconditional is None or not guidance.acts_at(self.step, self.num_steps):
            return [branches.full]
        if branches.image_only is None:
            return [branches.unconditional, branches.full]
        return [branches.full, branches.image_only, branches.unconditional]

    def _combine(self, predictions: Sequence[torch.Tensor]) -> torch.Tensor:
        guidance = self.guidance
        if len(predictions) == 1:
            return predictions[0]
        if len(predictions) == 2:
            unconditional, full = predictions
            patch = self.family.facts.guidance_patch
            return combine_cfg(full, unconditional, guidance.scale, guidance.rescale, patch)
        full, image_only, unconditional = predictions
        return combine_dual(
            full,
            image_only,
            unconditional,
            guidance.scale,
            guidance.image_scale,
            guidance.rescale,
        )


def denoise_rows(
    family: Family, denoiser_key: Hashable, rows: Sequence[Sequence[Row]]
) -> list[list[torch.Tensor]]:
    """Compute the rows of several images in one call; returns the predictions of each image."""
    flat = [row for each in rows for row in each]
    predictions = iter(torch.split(family.denoise(denoiser_key, flat), 1))
    return [list(itertools.islice(predictions, len(each))) for each in rows]


def _decode(
    decode: Callable[[torch.Tensor], torch.Tensor],
    latents: torch.Tensor,
    finish: Callable[[Pixels], Finished],
) -> Finished:
    picture = finite(decode(finite(latents, "latents")), "a picture")
    return finish(from_signed(picture[0]))


def needs_unconditional(guidance: Guidance, *, dual: bool) -> bool:
    """Whether any branch besides the full one has an effect."""
    return not (is_off(guidance.scale) and (not dual or is_off(guidance.image_scale)))
