"""The smallest loop that draws with a family: it does what the engine does, for samples of one step
each.

Steps are taken timestep by timestep; `draw_together` puts the rows of several jobs, each at a
timestep of its own, into shared calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.contract.draw import ImageTask
from engine.diffusion.families.family import Row
from engine.diffusion.guidance import combine_cfg, combine_dual, is_off
from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.text import PromptText

TOLERANCE = 1e-4
"""Tolerances of fp32 over a few steps; with channels last, sums are taken in another order."""


@dataclass
class Job:
    """One image to draw.

    Attributes:
        image_latents: the latents of the conditional rows.
        start: the index of the first timestep.
    """

    prompt: str
    latents: torch.Tensor
    negative: str = ""
    task: ImageTask = ImageTask.TEXT_TO_IMAGE
    scheduler: str | None = None
    num_steps: int = 3
    guidance: float = 7.5
    image_guidance: float = 1.5
    rescale: float = 0.0
    clip_skip: int = 0
    image_latents: torch.Tensor | None = None
    start: int = 0
    generator: torch.Generator | None = None
    schedule: Any = None


def draw(family: Any, job: Job) -> torch.Tensor:
    """Return the final latents."""
    return draw_together(family, [job], [0])[0]


def draw_together(family: Any, jobs: Sequence[Job], joins: Sequence[int]) -> list[torch.Tensor]:
    """Return the final latents of jobs that join at some step and leave when they are done."""
    states = [_Running(family, job) for job in jobs]
    step = 0
    while not all(state.done for state in states):
        active = [
            state
            for state, join in zip(states, joins, strict=True)
            if join <= step and not state.done
        ]
        step += 1
        rows = [row for state in active for row in state.rows()]
        if not rows:
            continue
        predictions = list(family.denoise(active[0].key, rows).split(1))
        for state in active:
            own, predictions = predictions[: state.num_rows], predictions[state.num_rows :]
            state.advance(own)
    return [state.latents for state in states]


class _Running:
    def __init__(self, family: Any, job: Job) -> None:
        self.job = job
        self.key = family.denoiser_key(job.task)
        height, width = (side * family.facts.vae_factor for side in job.latents.shape[2:])
        self._size = {"height": height, "width": width}
        self.schedule = job.schedule or family.new_noise_schedule(
            job.scheduler, job.num_steps, width, height
        )
        self.index = job.start
        self.latents = job.latents
        if job.schedule is None:
            self.latents = job.latents * self.schedule.init_noise_sigma
        texts = [
            PromptText(text=job.prompt, clip_skip=job.clip_skip),
            PromptText(text=job.negative),
        ]
        self._positive, self._negative = family.encode_prompts(texts)
        self.num_rows = len(self._branches())

    @property
    def done(self) -> bool:
        return self.index >= self.schedule.num_timesteps

    def rows(self) -> list[Row]:
        scaled = self.schedule.scale(self.latents, self.index)
        timestep = self.schedule.timesteps[self.index]
        return [
            Row(latents=scaled, timestep=timestep, prompt=p, image_latents=image, **self._size)
            for p, image in self._branches()
        ]

    def advance(self, predictions: Sequence[torch.Tensor]) -> None:
        prediction = predictions[0]
        if len(predictions) == 2:
            prediction = combine_cfg(
                predictions[0], predictions[1], self.job.guidance, self.job.rescale
            )
        elif len(predictions) == 3:
            prediction = combine_dual(*predictions, self.job.guidance, self.job.image_guidance)  # type: ignore[call-arg, arg-type]
        generator = self.job.generator or torch.Generator()
        self.latents = self.schedule.step(prediction, self.index, self.latents, generator)
        self.index += 1

    def _branches(self) -> list[tuple[PromptStates, torch.Tensor | None]]:
        image = self.job.image_latents
        full = (self._positive, image)
        if self.job.task is ImageTask.EDIT:
            assert image is not None
            return [full, (self._negative, image), (self._negative, torch.zeros_like(image))]
        if is_off(self.job.guidance):
            return [full]
        return [full, (self._negative, image)]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, case: object) -> None:
    """Check that values are equal up to rounding. Some samplers take random weights to latents far
    above 1."""
    worst = (ours - theirs).abs().max().item()
    scale = max(1.0, theirs.abs().max().item())
    assert worst < TOLERANCE * scale, f"{case}: {worst} at latents up to {scale}"
