"""FLUX.2 against diffusers' pipelines, on tiny random components."""

import random
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinInpaintPipeline
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline, compute_empirical_mu
from PIL import Image

from engine.contract.draw import GuidanceKind, ImageTask
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.families.family import Row
from engine.diffusion.families.flux2 import empirical_mu, image_positions
from engine.diffusion.families.registry import family_of as class_of
from engine.diffusion.prompt.text import PromptText
from engine.diffusion.tasks.references import reference_tensor
from engine.errors import UnsupportedArchitecture
from engine.pictures.arrays import array_of
from tests.helpers.diffusion.denoise_loop import Job, draw, settings_of
from tests.helpers.diffusion.engine_runs import advance
from tests.helpers.diffusion.tiny_families import load_folder
from tests.helpers.diffusion.tiny_flux2 import (
    CHANNELS,
    FACTOR,
    TOKENS,
    Flux2Parts,
    flux2_parts,
    noise,
)
from tests.helpers.diffusion.tiny_transformers import assert_drawn
from tests.helpers.diffusion.toy_family import mask, picture, request

KINDS = ("klein", "klein-base", "dev")
WIDTH, HEIGHT = 96, 64
PROMPT = "a red circle above a [IMG]blue square"


def theirs_of(parts: Flux2Parts, job: Job, seed: int, **inputs: Any) -> Any:
    """The final latents of diffusers' pipeline, in our layout, and its picture."""
    layers = (9, 18, 27) if parts.is_klein else (10, 20, 30)
    steps: list[torch.Tensor] = []

    def keep(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(tensors["latents"])
        return {}

    images = parts.pipeline()(
        **settings_of(job, seed),
        **inputs,
        height=HEIGHT,
        width=WIDTH,
        max_sequence_length=TOKENS,
        text_encoder_out_layers=layers,
        callback_on_step_end=keep,
        output_type="pt",
    ).images
    latents = steps[-1].transpose(1, 2).unflatten(2, (HEIGHT // FACTOR, WIDTH // FACTOR))
    return latents, images * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [1, 4])
def test_text_to_image_equals_diffusers(kind: str, num_steps: int) -> None:
    seed = random.randrange(2**31)
    parts = flux2_parts(seed, kind)
    family = parts.family()
    start = torch.randn(noise(seed).shape, generator=torch.Generator().manual_seed(seed))
    job = Job(PROMPT, start, num_steps=num_steps, guidance=3.0)
    ours = draw(family, job)
    assert_drawn(family, ours, *theirs_of(parts, job, seed), seed)
    assert (ours - start).abs().max() > 0.1, "denoising did something"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_references", [1, 2, 3])
def test_edits_equal_diffusers(kind: str, num_references: int) -> None:
    """References of several sizes, none of them the result's."""
    seed = random.randrange(2**31)
    parts = flux2_parts(seed, kind)
    family = parts.family()
    images = [
        picture(random.randrange(64, 140), random.randrange(64, 140), number)
        for number in range(num_references)
    ]
    facts = family.facts.references
    assert facts is not None
    tensors = [reference_tensor(image, facts) for image in images]
    references = tuple(family.encode_image(tensor, None) for tensor in tensors)
    job = Job(
        PROMPT, noise(seed), task=ImageTask.EDIT, num_steps=3, guidance=2.5, references=references
    )
    ours = draw(family, job)
    # Their pipeline draws the noise first.
    generator = torch.Generator().manual_seed(seed)
    assert torch.equal(torch.randn(noise(seed).shape, generator=generator), noise(seed))
    sent = [Image.fromarray(array_of(image)) for image in images]
    assert_drawn(family, ours, *theirs_of(parts, job, seed, image=sent), seed)
    job.references = references[:-1]
    assert (ours - draw(family, job)).abs().max() > 1e-4, "the last reference has an effect"


def test_large_references_are_reduced_as_in_diffusers() -> None:
    facts = flux2_parts(1, num_text_layers=28).family().facts.references
    assert facts is not None
    image = picture(random.randrange(1100, 1300), random.randrange(1000, 1400))
    processor = Flux2ImageProcessor(vae_scale_factor=FACTOR)
    reduced = processor._resize_to_target_area(Image.fromarray(array_of(image)))
    width, height = (side // FACTOR * FACTOR for side in reduced.size)
    expected = processor.preprocess(reduced, height=height, width=width, resize_mode="crop")
    assert torch.allclose(reference_tensor(image, facts), expected, atol=1e-6)
    assert facts.size_of(image.width, image.height) == (width, height)


def test_schedule_and_positions_equal_diffusers() -> None:
    for _ in range(100):
        tokens, steps = random.randrange(1, 9000), random.randrange(1, 200)
        assert empirical_mu(tokens, steps) == compute_empirical_mu(tokens, steps)
    images = [noise(number, *sides) for number, sides in enumerate([(64, 96), (8, 24), (32, 16)])]
    theirs = torch.cat(
        [
            Flux2Pipeline._prepare_latent_ids(images[0])[0],
            Flux2Pipeline._prepare_image_ids(images[1:])[0],
        ]
    )
    assert torch.equal(image_positions(images), theirs)


@pytest.mark.parametrize("kind", ["klein", "dev"])
def test_long_prompts_are_cut_as_in_diffusers(kind: str) -> None:
    parts = flux2_parts(1, kind)
    text = "a red circle " * random.randrange(20, 40)
    [states] = parts.family().encode_prompts([PromptText(text=text)])
    theirs, _ = parts.pipeline().encode_prompt(text, max_sequence_length=TOKENS)
    assert (states.states - theirs).abs().max() < 1e-5
    [warning] = states.warnings
    assert f"longer than the {TOKENS} tokens that this model's text encoder reads" in warning
    [short] = parts.family().encode_prompts([PromptText(text="red")])
    assert (short.num_tokens, short.warnings) == (3, ())
    assert (short.states - states.states).abs().max() > 1e-3


def test_rows_of_different_requests_equal_one_by_one() -> None:
    seed = random.randrange(2**31)
    family = flux2_parts(seed, "dev", num_text_layers=31).family()
    prompts = family.encode_prompts([PromptText(text=text) for text in ("a", "two stars", "")])
    references = [(), (noise(1),), (noise(2), noise(3, 16, 24)), (noise(3),), ()]
    rows = [
        Row(
            latents=noise(seed + i),
            timestep=family.new_noise_schedule(None, 6 + i, WIDTH, HEIGHT).timesteps[i],
            prompt=prompts[i % 3],
            references=beside,
            guidance_scale=1.0 + i,
        )
        for i, beside in enumerate(references)
    ]
    together = family.denoise("image", rows)
    family._dtype = torch.float64  # no longer exact: rows of one layout share a pass
    family._transformer.double()
    shared = family.denoise("image", rows)
    assert together.shape == (5, CHANNELS, HEIGHT // FACTOR, WIDTH // FACTOR)
    assert (together - shared).abs().max() < 1e-4, f"{seed=}"


@pytest.mark.parametrize("kind", KINDS)
def test_folders_load(kind: str, tmp_path: Any) -> None:
    parts = flux2_parts(random.randrange(1000), kind)
    parts.pipeline().save_pretrained(tmp_path)
    family = load_folder(tmp_path)
    assert family.facts == parts.family().facts
    job = Job(PROMPT, noise(1), guidance=3.0)
    # The real length of prompts is another than that of the tests.
    family._encoder._length = TOKENS
    assert (draw(family, job) - draw(parts.family(), job)).abs().max() < 1e-5


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["klein", "klein-base"])
def test_inpainting_equals_diffusers(kind: str, strength: float) -> None:
    """The input is a reference, too. The mask's sides are those of latent cells."""
    parts = flux2_parts(random.randrange(1000), kind)
    image, area = picture(WIDTH, HEIGHT, 5), mask(WIDTH, HEIGHT, (16, 8, 64, 40))
    params = {"width": WIDTH, "height": HEIGHT, "num_inference_steps": 4, "guidance_scale": 3.0}
    asked = request(
        prompt=PROMPT,
        image=image,
        mask=area,
        task=ImageTask.INPAINT,
        strength=strength,
        seed=random.randrange(1 << 31),
        **params,
    )
    [drawing] = DrawingFactory(parts.family()).create(asked)
    names = ("scheduler", "vae", "text_encoder", "tokenizer", "transformer")
    pipeline = Flux2KleinInpaintPipeline(
        **{name: getattr(parts, name) for name in names}, is_distilled=parts.is_distilled
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt=PROMPT,
        image=Image.fromarray(array_of(image)),
        mask_image=Image.fromarray(array_of(area)),
        strength=strength,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(drawing.seed),
        max_sequence_length=TOKENS,
        output_type="pt",
    ).images
    final = advance(drawing)
    assert (final.family.decode(final.final()) - (theirs * 2 - 1)).abs().max() < 1e-4


def test_a_request_encodes_each_reference_once(monkeypatch: pytest.MonkeyPatch) -> None:
    family = flux2_parts(random.randrange(1000), "klein-base").family()
    encode, encoded = family.encode_image, []

    def counted(image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        encoded.append(image.shape[2:])
        return encode(image, generator)

    monkeypatch.setattr(family, "encode_image", counted)
    asked = request(task=ImageTask.EDIT, n=2, width=64, height=32, negative_prompt="rain")
    asked.images.extend([picture(64, 80), picture(72, 64)])
    first, second = DrawingFactory(family).create(asked)
    assert encoded == [(80, 64), (64, 72)]
    assert first.stage.num_rows == 2, "guidance has no branch without the images"
    assert first.stage.num_pixels == 64 * 32 + 64 * 80 + 72 * 64
    assert first.group == second.group
    asked.images.pop()
    [alone, _] = DrawingFactory(family).create(asked)
    assert alone.group != first.group, "a call has as many references in all rows"


def test_facts() -> None:
    klein, base, dev = (flux2_parts(1, kind).family().facts for kind in KINDS)
    assert [facts.denoising.guidance for facts in (klein, base, dev)] == [
        GuidanceKind.NONE,
        GuidanceKind.CLASSIFIER_FREE,
        GuidanceKind.DISTILLED,
    ]
    assert (klein.denoising.default_steps, klein.denoising.default_guidance_scale) == (4, 1.0)
    assert (dev.denoising.default_steps, dev.denoising.default_guidance_scale) == (50, 4.0)
    assert klein.denoising.schedulers == ("euler", "heun")
    assert klein.references is not None and klein.references.combines


def test_what_is_not_served_is_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"has 27 layers; .* layer 27"):
        flux2_parts(1, num_text_layers=27).family()
    parts = flux2_parts(1, num_text_layers=28)
    parts.transformer.register_to_config(in_channels=2 * CHANNELS)
    with pytest.raises(UnsupportedArchitecture, match=f"takes {2 * CHANNELS} channels"):
        parts.family()
    with pytest.raises(UnsupportedArchitecture, match="Flux2KleinPipeline"):
        class_of("Flux2KleinKVPipeline")
