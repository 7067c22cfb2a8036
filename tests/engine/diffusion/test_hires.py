"""A second pass over what was drawn: what it is in one request, it is in two."""

import random
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from engine.contract.draw import Enlarging, HiresPass, ImageRequest, ImageTask, PromptSyntax
from engine.contract.pixels import Pixels
from engine.contract.request import FinishReason
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.tasks.enlarge import enlarge_latents, enlarge_picture
from engine.errors import InvalidParameter
from tests.helpers.diffusion.engine_runs import advance, drawn_by, results, run, take_step
from tests.helpers.diffusion.tiny_pipelines import tiny_parts
from tests.helpers.diffusion.toy_family import FACTOR, ToyFamily, request

TOLERANCE = 1e-4
"""fp32 over a few steps; sums are taken in another order with channels last."""

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")


def hires(width: int = 48, height: int = 64, **changes: Any) -> HiresPass:
    defaults = {
        "enlarging": Enlarging.LATENT,
        "num_inference_steps": 6,
        "strength": 0.5,
        "guidance_scale": 3.0,
        "scheduler": "euler_ancestral",
        "prompt": "a blue square",
        "negative_prompt": "wood",
    }
    return HiresPass(width=width, height=height, **{**defaults, **changes})


def asked(request_id: str = "r", second: HiresPass | None = None, **changes: Any) -> ImageRequest:
    changes = {"width": 24, "height": 32, "hires": second or hires(), **changes}
    return request(request_id, **changes)


def redrawn(whole: ImageRequest, pictures: list[Pixels]) -> ImageRequest:
    """The request for the second pass alone, over what the first has drawn."""
    second, how = whole.params.hires, whole.params.second_pass
    assert second is not None and how is not None
    images = [
        enlarge_picture(one, second.width, second.height, second.enlarging) for one in pictures
    ]
    return replace(whole, prompt=second.prompt, params=how, images=images)


def pictures_of(events: list[Any], request_id: str = "r") -> list[Pixels]:
    found = {e.index: e.image for e in events if e.image is not None and e.request_id == request_id}
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("how", [Enlarging.LANCZOS, Enlarging.NEAREST])
def test_redrawing_the_picture_is_what_a_second_request_does(make_engine, how):
    engine, seed = make_engine(), random.randrange(1 << 31)
    whole = asked(second=hires(enlarging=how), seed=seed, n=2, num_previews=3)
    plain = replace(whole, params=replace(whole.params, hires=None))
    first = pictures_of(run(engine, [plain]))
    theirs = results(run(engine, [redrawn(whole, first)]))
    ours = results(run(engine, [whole]))
    assert ours.keys() == theirs.keys() == {("r", 0), ("r", 1)}
    for key, levels in ours.items():
        assert (levels == theirs[key]).all(), (seed, key)
    assert (ours["r", 0] != ours["r", 1]).any()


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_redrawing_latents_is_diffusers_image_to_image_over_latents(strength):
    parts, seed = tiny_parts(3), random.randrange(1 << 31)
    second = hires(32, 48, strength=strength, enlarging=Enlarging.LATENT_BICUBIC)
    (drawing,) = DrawingFactory(parts.family()).create(asked(second=second, seed=seed, width=16))
    small = advance(drawing).final()
    drawing.go_on(None)
    factor = parts.family().facts.vae_factor
    enlarged = enlarge_latents(small, 32 // factor, 48 // factor, second.enlarging)
    assert small.shape[2:] != enlarged.shape[2:]
    kind, inputs = "StableDiffusionImg2ImgPipeline", {"image": enlarged, "strength": strength}
    if strength == 1.0:  # keeps nothing, here
        kind, inputs = "StableDiffusionPipeline", {"width": 32, "height": 48}
    pipeline = parts.pipeline(getattr(diffusers, kind))
    settings = {
        "prompt": second.prompt,
        "negative_prompt": second.negative_prompt,
        "num_inference_steps": second.num_inference_steps,
        "guidance_scale": second.guidance_scale,
    }
    theirs = drawn_by(pipeline, drawing, **settings, **inputs)
    worst = (advance(drawing).final() - theirs).abs().max().item()
    assert worst < TOLERANCE, (seed, worst)


def test_it_depends_on_nobody_and_shares_the_steps_of_its_sizes(make_engine):
    """Bit for bit, beside plain requests of both sizes, in both passes, whoever comes when."""
    requests = [
        asked("latent", seed=random.randrange(1 << 31), n=2),
        asked("picture", hires(enlarging=Enlarging.LANCZOS), seed=random.randrange(1 << 31)),
        request("small", width=24, height=32, seed=1),
        request("large", width=48, height=64, seed=2, num_inference_steps=8),
    ]
    alone = {}
    for one in requests:
        alone |= results(run(make_engine(), [one]))
    family = ToyFamily()
    engine = make_engine(family)
    commit = engine._scheduler.commit
    # Sizes take turns whatever the machine does meanwhile.
    engine._scheduler.commit = lambda decision, elapsed_s: commit(decision, 1.0)
    together = results(run(engine, requests, arrivals=[1, 0, 1, 2]))
    assert together.keys() == alone.keys()
    for key, levels in together.items():
        assert (levels == alone[key]).all(), key
    widest = {}
    for _, num_rows, shape in family.calls:
        widest[shape[1:]] = max(num_rows, widest.get(shape[1:], 0))
    small, large = (32 // FACTOR, 24 // FACTOR), (64 // FACTOR, 48 // FACTOR)
    assert widest.keys() == {small, large}
    assert widest[small] > 4 and widest[large] > 4, "more than the two images of one request"


def test_steps_and_previews_are_counted_over_both_passes(make_engine):
    for how in (Enlarging.LATENT, Enlarging.LANCZOS):
        events = run(make_engine(), [asked(second=hires(enlarging=how), num_previews=3)])
        steps = [event.step for event in events if event.preview is None]
        assert {event.num_steps for event in events} == {7}
        assert steps == sorted(steps) and set(steps) == set(range(8))
        shown = [(e.preview_index, e.preview.width) for e in events if e.preview is not None]
        assert sorted(shown)[0] == (0, 24) and sorted(shown)[-1] == (2, 48)
        assert (events[-1].image.width, events[-1].image.height) == (48, 64)


@pytest.mark.parametrize("how", [Enlarging.LATENT, Enlarging.LANCZOS])
def test_it_can_be_cancelled_at_any_time(make_engine, how):
    engine = make_engine()
    for after in range(9):
        engine.reset_totals()
        run(engine, [asked(second=hires(enlarging=how), n=2)], aborts={after: ["r"]})
        stats = engine.stats()
        assert stats.num_image_steps + stats.num_cancelled_steps == (14 if after else 0)
        assert stats.num_running == 0
    assert len(pictures_of(run(engine, [asked()]))) == 1


def test_a_fault_between_the_passes_ends_its_image_alone(make_engine):
    family = ToyFamily()
    encode = family.encode_image

    def fails(image, generator):
        if generator.initial_seed() == 11:
            raise torch.OutOfMemoryError("no memory")
        return encode(image, generator)

    family.encode_image = fails
    whole = asked(second=hires(enlarging=Enlarging.LANCZOS), n=3, seed=10)
    events = run(make_engine(family), [whole])
    ends = {e.index: e.finish_reason for e in events if e.finish_reason is not None}
    assert ends == {0: FinishReason.STOP, 1: FinishReason.ERROR, 2: FinishReason.STOP}


def test_what_the_model_cannot_do_is_said_before_the_first_step(make_engine):
    family = ToyFamily()
    for second, said in (
        (hires(46), "hires: size is 46x64; both must be multiples of 4"),
        (hires(4096, 4096), "hires: 4096x4096 px is 16777216 pixels"),
        (hires(num_inference_steps=1001), "hires: num_inference_steps is 1001"),
        (hires(scheduler="nobodys"), "hires: scheduler 'nobodys'"),
    ):
        with pytest.raises(InvalidParameter, match=said) as refused:
            DrawingFactory(family).create(asked(second=second))
        assert refused.value.param.startswith("hires.")
    assert family.calls == []


def test_each_pass_has_its_own_prompt_and_guidance():
    family = ToyFamily()
    second = hires(prompt="a [cat:dog:0.5]", num_inference_steps=8, negative_prompt="")
    whole = asked(second=second, prompt_syntax=PromptSyntax.A1111, guidance_scale=1.0)
    (drawing,) = DrawingFactory(family).create(whole)
    assert [row.prompt.key.text for row in drawing.stage.rows()] == ["a red circle"]
    advance(drawing)
    drawing.go_on(None)
    said = []
    while not drawing.finished:
        unwanted, wanted = (row.prompt.key.text for row in drawing.stage.rows())
        assert unwanted == ""
        said.append(wanted)
        take_step(drawing.stage)
    assert said == ["a cat"] * 2 + ["a dog"] * 2
    assert (drawing.step, drawing.num_steps) == (8, 8)
    assert whole.params.second_pass.task is ImageTask.IMAGE_TO_IMAGE
