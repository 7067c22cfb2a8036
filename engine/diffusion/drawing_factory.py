"""From a request to its drawings: prompts encoded, input image in latent space, first noise drawn.

Each image has one CPU generator seeded seed + index, and draws from it in diffusers' order: the
posterior of the input image where the latents need it, the first noise, the posterior of the image
beside the latents, then whatever the noise schedule needs. Upscaling draws the noise of the image
beside the latents before the first noise.
"""

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from engine.diffusion.blending import LatentBlend
from engine.diffusion.denoising import Branches, Denoising, needs_unconditional
from engine.diffusion.drawing import Drawing
from engine.diffusion.families.family import Family
from engine.diffusion.guidance import Guidance, is_off
from engine.diffusion.prompt.course import course_of
from engine.diffusion.prompt.states import PromptCourse
from engine.diffusion.prompt.text import PromptText
from engine.diffusion.prompt_cache import Lookups, PromptCache
from engine.diffusion.restoring import Restoring
from engine.diffusion.stage import Stage
from engine.diffusion.tasks.prepare import Preparation, prepare
from engine.diffusion.tiling import Tiling, tile
from engine.image_types import GuidanceKind, ImageParams, ImageRequest, ImageTask, PromptSyntax
from engine.lora.images.layers import Uses

if TYPE_CHECKING:
    # It imports diffusers, which takes seconds.
    from engine.diffusion.noise_schedule import NoiseSchedule

_PARTIAL_TASKS = (ImageTask.IMAGE_TO_IMAGE, ImageTask.INPAINT, ImageTask.RESTORE)
"""Of which `strength` is the share of the steps that is run."""

UNUSED_NEGATIVE = "negative_prompt has no effect: {reason}"
UNUSED_GUIDANCE = (
    "guidance_scale has no effect: of {num_steps} steps none is between guidance_start {start:g} "
    "and guidance_end {end:g}"
)


class DrawingFactory:
    """A `DrawingSource` of models that denoise."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._prompts = PromptCache(family)

    @property
    def lookups(self) -> Lookups:
        return self._prompts.lookups

    def create(self, request: ImageRequest) -> list[Drawing]:
        """One drawing per image of the request; several input images take equal shares of them.

        Raises:
            InvalidParameter: the request does not fit the model or itself.
        """
        started_s, params = time.perf_counter(), request.params
        n = params.n // request.num_settings
        preparations = self._prepare(request)
        guidance = self._guidance(params)
        drawings = []
        for setting, uses in enumerate(_settings(request)):
            states = self._encode(request.prompt, params, guidance, uses)
            for place in range(n):
                preparation = preparations[place * len(preparations) // n]
                index, seed = setting * n + place, params.seed + place
                drawings.append(
                    self._create(request, index, seed, preparation, guidance, states, uses)
                )
        each_s = (time.perf_counter() - started_s) / len(drawings)
        for drawing in drawings:
            drawing.encode_time_s = each_s
        return drawings

    def _prepare(self, request: ImageRequest) -> list[Preparation]:
        """One for each input image, or one without any."""
        facts = self._family.facts
        if len(request.images) <= 1:
            return [prepare(request, facts)]
        return [prepare(replace(request, images=[image]), facts) for image in request.images]

    def _guidance(self, params: ImageParams) -> Guidance:
        return Guidance(
            scale=params.guidance_scale,
            image_scale=params.image_guidance_scale,
            rescale=params.guidance_rescale,
            start=params.guidance_start,
            end=params.guidance_end,
        )

    def _encode(
        self, prompt: str, params: ImageParams, guidance: Guidance, uses: Uses
    ) -> tuple[PromptCourse, PromptCourse | None]:
        """States of the prompt and, where it has an effect, of the negative prompt.

        As in diffusers' pipelines, `clip_skip` is for the prompt alone.
        """
        syntax = params.prompt_syntax
        adapters = self._family.adapted.of_prompts(uses) if uses else ()
        wanted = [
            PromptText(text=text, syntax=syntax, clip_skip=params.clip_skip, adapters=adapters)
            for text in _texts(prompt, params)
        ]
        unwanted = [
            PromptText(text=text, syntax=syntax, adapters=adapters)
            for text in _texts(params.negative_prompt, params)
            if self._is_guided(params, guidance)
        ]
        texts = list(dict.fromkeys([*wanted, *unwanted]))
        states = dict(zip(texts, self._prompts.encode(texts), strict=True))
        positive = PromptCourse(tuple(states[text] for text in wanted))
        negative = PromptCourse(tuple(states[text] for text in unwanted))
        return positive, negative if unwanted else None

    def _is_guided(self, params: ImageParams, guidance: Guidance) -> bool:
        if self._family.facts.denoising.guidance is not GuidanceKind.CLASSIFIER_FREE:
            return False
        return needs_unconditional(guidance, dual=params.task is ImageTask.EDIT)

    def _create(
        self,
        request: ImageRequest,
        index: int,
        seed: int,
        preparation: Preparation,
        guidance: Guidance,
        states: tuple[PromptCourse, PromptCourse | None],
        uses: Uses,
    ) -> Drawing:
        params, family = request.params, self._family
        generator = torch.Generator("cpu").manual_seed(_wrapped(seed))
        tiling = self._tiling(preparation) if params.task is ImageTask.RESTORE else None
        schedule = self._schedule(params, preparation, tiling)
        clean = self._clean(params, preparation, generator)
        upscales = params.task is ImageTask.UPSCALE
        condition = self._condition(params, preparation, generator) if upscales else None
        noise = self._draw(preparation, generator)
        first = 0
        latents = noise * schedule.init_noise_sigma
        if _starts_later(params) and (clean is not None or tiling is not None):
            first = schedule.start_of(params.strength, params.num_inference_steps)
            latents = latents if clean is None else schedule.noised(clean, noise, first)
        if not upscales:
            condition = self._condition(params, preparation, generator)
        denoising = Denoising(
            family=family,
            generator=generator,
            schedule=schedule,
            latents=latents,
            branches=_branches(params.task, states, condition),
            guidance=guidance,
            denoiser_key=family.denoiser_key(params.task),
            preparation=preparation,
            first_timestep_index=first,
            timestep_index=first,
            noise_level=params.noise_level,
            keeps_x0=params.num_previews > 0,
            adapters=uses,
        )
        if params.task is ImageTask.INPAINT and condition is None:
            assert clean is not None and preparation.latent_mask is not None
            mask = preparation.latent_mask.to(family.device)
            denoising.blend = LatentBlend(
                mask, clean, noise, soft=params.soft_mask, first_timestep_index=first
            )
        stage: Stage = denoising
        if tiling is not None:
            assert preparation.image is not None
            stage = Restoring(
                canvas=denoising,
                tiling=tiling,
                image=preparation.image.to(family.device),
                noise=noise if params.strength < 1.0 else None,
                pull=params.restoration,
            )
        warnings = (*self._warnings(params), *_prompt_warnings(states))
        num_steps = denoising.num_steps
        if states[1] is not None and num_steps and not guidance.acts_within(num_steps):
            warnings += (_unused_guidance(guidance, num_steps),)
        return Drawing(
            request=request,
            index=index,
            seed=seed,
            stage=stage,
            num_prompt_tokens=states[0].num_tokens,
            warnings=warnings,
        )

    def _tiling(self, preparation: Preparation) -> Tiling:
        """Of the latents, in tiles of the size that the model draws best."""
        facts = self._family.facts
        sides = (
            preparation.height,
            preparation.width,
            facts.default_height,
            facts.default_width,
            facts.size_multiple,
        )
        return tile(*(side // facts.vae_factor for side in sides))

    def _schedule(
        self, params: ImageParams, preparation: Preparation, tiling: Tiling | None
    ) -> "NoiseSchedule":
        """For the size that the denoiser sees at once."""
        height, width = preparation.height, preparation.width
        if tiling is not None:
            height, width = (side * self._family.facts.vae_factor for side in tiling.tile_size)
        return self._family.new_noise_schedule(
            params.scheduler, params.num_inference_steps, width, height
        )

    def _clean(
        self, params: ImageParams, preparation: Preparation, generator: torch.Generator
    ) -> torch.Tensor | None:
        """Latents of the input image, where they are needed before the first step."""
        if not self._starts_from_image(params):
            return None
        assert preparation.image is not None
        return self._family.encode_image(preparation.image.to(self._family.device), generator)

    def _starts_from_image(self, params: ImageParams) -> bool:
        """Whether the input's latents are needed: to start from, or to keep under the mask."""
        if params.strength >= 1.0 and params.task in self._family.facts.image_free_at_full_strength:
            return False
        return params.task in (ImageTask.IMAGE_TO_IMAGE, ImageTask.INPAINT)

    def _draw(self, preparation: Preparation, generator: torch.Generator) -> torch.Tensor:
        facts = self._family.facts
        shape = (
            1,
            facts.latent_channels,
            preparation.height // facts.vae_factor,
            preparation.width // facts.vae_factor,
        )
        return torch.randn(shape, generator=generator).to(self._family.device)

    def _condition(
        self, params: ImageParams, preparation: Preparation, generator: torch.Generator
    ) -> torch.Tensor | None:
        if preparation.image is None:
            return None
        device, mask = self._family.device, preparation.mask
        return self._family.image_condition(
            params.task,
            preparation.image.to(device),
            None if mask is None else (mask > 0.5).float().to(device),
            generator,
            noise_level=params.noise_level,
        )

    def _warnings(self, params: ImageParams) -> tuple[str, ...]:
        if not params.negative_prompt:
            return ()
        if self._family.facts.denoising.guidance is not GuidanceKind.CLASSIFIER_FREE:
            reason = "this model works without classifier-free guidance"
        elif is_off(params.guidance_scale):
            reason = "guidance_scale is 1; raise it"
        else:
            return ()
        return (UNUSED_NEGATIVE.format(reason=reason),)


def _settings(request: ImageRequest) -> list[Uses]:
    """The adapters of each: those that act."""
    settings = [tuple(use for use in one if use.scale != 0) for one in request.loras]
    return settings or [()]


def _starts_later(params: ImageParams) -> bool:
    return params.strength < 1.0 and params.task in _PARTIAL_TASKS


def _texts(prompt: str, params: ImageParams) -> tuple[str, ...]:
    """Of each step that is run, or one for all."""
    if params.prompt_syntax is not PromptSyntax.A1111:
        return (prompt,)
    num_steps = params.num_inference_steps
    if _starts_later(params):
        num_steps = max(1, int(num_steps * params.strength))
    return course_of(prompt, num_steps)


def _unused_guidance(guidance: Guidance, num_steps: int) -> str:
    return UNUSED_GUIDANCE.format(num_steps=num_steps, start=guidance.start, end=guidance.end)


def _prompt_warnings(states: tuple[PromptCourse, PromptCourse | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(w for each in states if each is not None for w in each.warnings))


def _branches(
    task: ImageTask,
    states: tuple[PromptCourse, PromptCourse | None],
    condition: torch.Tensor | None,
) -> Branches:
    positive, negative = states
    full = (positive, condition)
    if negative is None:
        return Branches(full=full)
    if task is ImageTask.EDIT and condition is not None:
        return Branches(
            full=full,
            image_only=(negative, condition),
            unconditional=(negative, torch.zeros_like(condition)),
        )
    return Branches(full=full, unconditional=(negative, condition))


def _wrapped(seed: int) -> int:
    """torch takes seeds below 2**64."""
    return seed % (1 << 64)
