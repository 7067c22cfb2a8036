"""The smallest loop that draws one image with a family, as the engine does."""

from dataclasses import dataclass
from typing import Any

import torch

from engine.contract.draw import GuidanceKind, ImageTask
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
        references: the latents of reference images.
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
    references: tuple[torch.Tensor, ...] = ()
    start: int = 0
    generator: torch.Generator | None = None
    schedule: Any = None


def redrawing(family: Any, image: torch.Tensor, strength: float, seed: int, **fields: Any) -> Job:
    """Make a job that redraws an image. Its generator draws the latents, then their noise."""
    job = Job(latents=image, generator=torch.Generator().manual_seed(seed), **fields)
    height, width = image.shape[2:]
    job.schedule = family.new_noise_schedule(job.scheduler, job.num_steps, width, height)
    job.start = job.schedule.start_of(strength, job.num_steps)
    clean = family.encode_image(image, job.generator)
    noise = torch.randn(clean.shape, generator=job.generator)
    job.latents = job.schedule.noised(clean, noise, job.start)
    return job


def settings_of(job: Job, seed: int) -> dict[str, Any]:
    """Give a job's settings as diffusers' pipelines take them."""
    settings = {
        "prompt": job.prompt,
        "num_inference_steps": job.num_steps,
        "guidance_scale": job.guidance,
        "generator": torch.Generator().manual_seed(seed),
    }
    return settings | ({"negative_prompt": job.negative} if job.negative else {})


def their_latents(pipeline: Any, job: Job, seed: int, **inputs: Any) -> torch.Tensor:
    """Return the final latents of diffusers' pipeline for a job's prompt and settings."""
    latents: torch.Tensor = pipeline(
        **settings_of(job, seed), output_type="latent", **inputs
    ).images
    return latents


def draw(family: Any, job: Job) -> torch.Tensor:
    """Return the final latents."""
    height, width = (side * family.facts.vae_factor for side in job.latents.shape[2:])
    schedule, latents = job.schedule, job.latents
    if schedule is None:
        schedule = family.new_noise_schedule(job.scheduler, job.num_steps, width, height)
        latents = latents * schedule.init_noise_sigma
    positive = PromptText(text=job.prompt, clip_skip=job.clip_skip)
    states = family.encode_prompts([positive, PromptText(text=job.negative)])
    branches = _branches(family, job, *states)
    generator = job.generator or torch.Generator()
    for index in range(job.start, schedule.num_timesteps):
        scaled = schedule.scale(latents, index)
        rows = [
            Row(
                latents=scaled,
                timestep=schedule.timesteps[index],
                prompt=prompt,
                image_latents=image,
                references=job.references,
                guidance_scale=job.guidance,
                height=height,
                width=width,
            )
            for prompt, image in branches
        ]
        prediction, *others = family.denoise(family.denoiser_key(job.task), rows).split(1)
        if len(others) == 1:
            settings = job.guidance, job.rescale, family.facts.guidance_patch
            prediction = combine_cfg(prediction, others[0], *settings)
        elif others:
            scales = job.guidance, job.image_guidance
            prediction = combine_dual(prediction, others[0], others[1], *scales)
        latents = schedule.step(prediction, index, latents, generator)
    return latents


def _branches(
    family: Any, job: Job, positive: PromptStates, negative: PromptStates
) -> list[tuple[PromptStates, torch.Tensor | None]]:
    """Give the prompt and the image latents of each row."""
    image = job.image_latents
    is_guided = family.facts.denoising.guidance is GuidanceKind.CLASSIFIER_FREE
    if is_guided and job.task is ImageTask.EDIT and image is not None:
        return [(positive, image), (negative, image), (negative, torch.zeros_like(image))]
    if not is_guided or is_off(job.guidance):
        return [(positive, image)]
    return [(positive, image), (negative, image)]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, case: object) -> None:
    """Check that values are equal up to rounding. Some samplers take random weights to latents far
    above 1."""
    worst = (ours - theirs).abs().max().item()
    scale = max(1.0, theirs.abs().max().item())
    assert worst < TOLERANCE * scale, f"{case}: {worst} at latents up to {scale}"
