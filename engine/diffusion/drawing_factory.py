"""Turns a request into drawings: encodes prompts and gives each image its start and stage."""

import time
from dataclasses import dataclass, replace
from functools import partial

import torch

from engine.contract.draw import (
    DrawParams,
    EditParams,
    Enlarging,
    GuidanceKind,
    ImageParams,
    ImageRequest,
    ImageTask,
    InpaintParams,
    PromptSyntax,
    RestoreParams,
    UpscaleParams,
    combines_images,
)
from engine.diffusion.blending import LatentBlend
from engine.diffusion.denoising import Branches, Denoising, needs_unconditional
from engine.diffusion.drawing import Drawing
from engine.diffusion.drawing_start import DrawingStart, start_of
from engine.diffusion.families.family import Family
from engine.diffusion.guidance import Guidance, is_off
from engine.diffusion.hires import Redrawing
from engine.diffusion.prompt.course import course_of
from engine.diffusion.prompt.states import PromptCourse
from engine.diffusion.prompt.text import PromptImage, PromptText
from engine.diffusion.prompt_cache import Lookups, PromptCache
from engine.diffusion.restoring import Restoring
from engine.diffusion.stage import Stage
from engine.diffusion.tasks.prepare import Preparation, prepare
from engine.lora.images.layers import Uses
from engine.pictures.tiles import Tiling

UNUSED_NEGATIVE = "negative_prompt has no effect: {reason}"
UNUSED_GUIDANCE = (
    "guidance_scale has no effect: none of the {num_steps} steps lies between guidance_start "
    "{start:g} and guidance_end {end:g}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """One pass over an image of a request, without its seed."""

    request: ImageRequest
    guidance: Guidance
    states: tuple[PromptCourse, PromptCourse | None]
    uses: Uses


class DrawingFactory:
    """The `DrawingSource` of models that denoise."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._prompts = PromptCache(family)

    @property
    def lookups(self) -> Lookups:
        return self._prompts.lookups

    def create(self, request: ImageRequest) -> list[Drawing]:
        """Make one drawing per image of the request; several input images get equal shares of them,
        unless the model combines them.

        Raises:
            InvalidParameter: the request does not fit the model or contradicts itself.
        """
        started_s, params = time.perf_counter(), request.params
        hires = params.hires if isinstance(params, DrawParams) else None
        n = params.n // request.num_settings
        preparations = self._prepare(request)
        references = [self._references(preparation) for preparation in preparations]
        seen = dict.fromkeys(preparation.prompt_images for preparation in preparations)
        drawings = []
        for setting, uses in enumerate(_settings(request)):
            passes = {images: self._pass(request, uses, images) for images in seen}
            second_pass = None
            if hires is not None:
                second = replace(request, prompt=hires.prompt, params=params.passes[-1])
                second_pass = self._pass(second, uses)
            for place in range(n):
                share = place * len(preparations) // n
                preparation = preparations[share]
                first_pass = passes[preparation.prompt_images]
                drawing = self._create(
                    first_pass, setting * n + place, place, preparation, references[share]
                )
                if hires is not None and second_pass is not None:
                    self._add_pass(drawing, second_pass, hires.enlarging)
                drawings.append(drawing)
        each_s = (time.perf_counter() - started_s) / len(drawings)
        for drawing in drawings:
            drawing.encode_time_s = each_s
        return drawings

    def _prepare(self, request: ImageRequest) -> list[Preparation]:
        """The preparation of each input image, or one preparation for all results."""
        facts = self._family.facts
        if len(request.images) <= 1 or combines_images(request.params.task, facts.references):
            return [prepare(request, facts)]
        return [prepare(replace(request, images=[image]), facts) for image in request.images]

    def _references(self, preparation: Preparation) -> tuple[torch.Tensor, ...]:
        """The latents of the reference images."""
        family = self._family
        return tuple(
            family.encode_image(image.to(family.device), None) for image in preparation.references
        )

    def _pass(
        self, request: ImageRequest, uses: Uses, images: tuple[PromptImage, ...] = ()
    ) -> _Pass:
        guidance = self._guidance(request.params)
        states = self._encode(request.prompt, request.params, guidance, uses, images)
        return _Pass(request=request, guidance=guidance, states=states, uses=uses)

    def _guidance(self, params: ImageParams) -> Guidance:
        return Guidance(
            scale=params.guidance_scale,
            image_scale=params.image_guidance_scale if isinstance(params, EditParams) else 1.0,
            rescale=params.guidance_rescale,
            start=params.guidance_start,
            end=params.guidance_end,
        )

    def _encode(
        self,
        prompt: str,
        params: ImageParams,
        guidance: Guidance,
        uses: Uses,
        images: tuple[PromptImage, ...],
    ) -> tuple[PromptCourse, PromptCourse | None]:
        """Encode the prompt and, if it has an effect, the negative prompt.

        As in diffusers' pipelines, `clip_skip` applies only to the prompt.
        """
        written = partial(
            PromptText,
            syntax=params.prompt_syntax,
            adapters=self._family.adapted.of_prompts(uses) if uses else (),
            images=images,
        )
        wanted = [written(text=text, clip_skip=params.clip_skip) for text in _texts(prompt, params)]
        unwanted = [
            written(text=text)
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
        is_dual = isinstance(params, EditParams) and self._family.facts.references is None
        return needs_unconditional(guidance, dual=is_dual)

    def _create(
        self,
        wanted: _Pass,
        index: int,
        place: int,
        preparation: Preparation,
        references: tuple[torch.Tensor, ...],
    ) -> Drawing:
        request, params = wanted.request, wanted.request.params
        seed = params.seed + place
        start = start_of(self._family, params, preparation, seed)
        denoising = self._denoising(wanted, preparation, start)
        denoising.references = references
        stage: Stage = denoising
        if isinstance(params, InpaintParams) and start.condition is None:
            denoising.blend = self._blend(params, preparation, start)
        if isinstance(params, RestoreParams) and start.tiling is not None:
            stage = self._restoring(params, preparation, start, start.tiling, denoising)
        return Drawing(
            request=request,
            index=index,
            seed=seed,
            stage=stage,
            num_prompt_tokens=wanted.states[0].num_tokens,
            warnings=self._warnings(wanted, denoising.num_steps),
        )

    def _denoising(self, wanted: _Pass, preparation: Preparation, start: DrawingStart) -> Denoising:
        params, family = wanted.request.params, self._family
        return Denoising(
            family=family,
            generator=start.generator,
            schedule=start.schedule,
            latents=start.latents,
            branches=_branches(params.task, wanted.states, start.condition),
            guidance=wanted.guidance,
            denoiser_key=family.denoiser_key(params.task),
            preparation=preparation,
            first_timestep_index=start.timestep_index,
            timestep_index=start.timestep_index,
            noise_level=params.noise_level if isinstance(params, UpscaleParams) else 0,
            keeps_x0=params.num_previews > 0,
            adapters=wanted.uses,
        )

    def _add_pass(self, drawing: Drawing, wanted: _Pass, enlarging: Enlarging) -> None:
        """Add a second pass to a drawing."""
        denoise = partial(self._denoising, wanted)
        redrawing = Redrawing(self._family, wanted.request, enlarging, drawing.seed, denoise)
        more = self._warnings(wanted, redrawing.num_steps)
        drawing.next_pass = redrawing
        drawing.warnings = tuple(dict.fromkeys((*drawing.warnings, *more)))

    def _blend(
        self, params: InpaintParams, preparation: Preparation, start: DrawingStart
    ) -> LatentBlend:
        """The blend that keeps the input outside the mask."""
        assert start.clean is not None and preparation.latent_mask is not None
        return LatentBlend(
            preparation.latent_mask.to(self._family.device),
            start.clean,
            start.noise,
            soft=params.soft_mask,
            first_timestep_index=start.timestep_index,
        )

    def _restoring(
        self,
        params: RestoreParams,
        preparation: Preparation,
        start: DrawingStart,
        tiling: Tiling,
        canvas: Denoising,
    ) -> Restoring:
        assert preparation.image is not None
        return Restoring(
            canvas=canvas,
            tiling=tiling,
            image=preparation.image.to(self._family.device),
            noise=start.noise if params.strength < 1.0 else None,
            pull=params.restoration,
        )

    def _warnings(self, wanted: _Pass, num_steps: int) -> tuple[str, ...]:
        guidance, states = wanted.guidance, wanted.states
        found = (*self._unused_negative(wanted.request.params), *_prompt_warnings(states))
        if states[1] is not None and num_steps and not guidance.acts_within(num_steps):
            return (*found, _unused_guidance(guidance, num_steps))
        return found

    def _unused_negative(self, params: ImageParams) -> tuple[str, ...]:
        if not params.negative_prompt:
            return ()
        if self._family.facts.denoising.guidance is not GuidanceKind.CLASSIFIER_FREE:
            reason = "this model does not use classifier-free guidance"
        elif is_off(params.guidance_scale):
            reason = "guidance_scale is 1; raise it"
        else:
            return ()
        return (UNUSED_NEGATIVE.format(reason=reason),)


def _settings(request: ImageRequest) -> list[Uses]:
    """The acting adapters of each setting."""
    settings = [tuple(use for use in one if use.scale != 0) for one in request.loras]
    return settings or [()]


def _texts(prompt: str, params: ImageParams) -> tuple[str, ...]:
    """The text for each step that is run, or a single text for all."""
    if params.prompt_syntax is not PromptSyntax.A1111:
        return (prompt,)
    return course_of(prompt, max(1, params.num_steps))


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
