"""The image engine over a toy family: what shares a batch changes nothing, nothing is lost."""

import random
import threading
from dataclasses import replace

import numpy as np
import pytest

from engine.contract.draw import GuidanceKind, ImageTask, PromptSyntax
from engine.contract.request import FinishReason
from engine.errors import QueueFull
from tests.helpers.diffusion.engine_runs import results, run
from tests.helpers.diffusion.toy_family import ToyFamily, mask, picture, request


def random_request(rng, request_id):
    task = rng.choice(list(ImageTask))
    width, height = rng.choice([(32, 32), (32, 32), (32, 32), (48, 32), (16, 40)])
    needs_image = task is not ImageTask.TEXT_TO_IMAGE
    return request(
        request_id,
        prompt=rng.choice(["a red circle", "a blue star", ""]),
        image=picture(width, height, rng.randrange(100)) if needs_image else None,
        mask=mask(width, height, (4, 4, 13, 15)) if task is ImageTask.INPAINT else None,
        task=task,
        width=width,
        height=height,
        num_inference_steps=rng.randint(2, 9),
        seed=rng.randrange(1 << 40),
        n=rng.choice([1, 1, 2]),
        guidance_scale=rng.choice([1.0, 3.0, 7.5]),
        guidance_rescale=rng.choice([0.0, 0.7]),
        guidance_end=rng.choice([1.0, 0.5]),
        negative_prompt=rng.choice(["", "blue"]),
        scheduler=rng.choice([None, "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde"]),
        strength=rng.choice([0.5, 1.0]),
    )


@pytest.mark.parametrize("deterministic", [False, True])
def test_an_image_does_not_depend_on_what_shares_the_batch(make_engine, deterministic):
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    requests = [random_request(rng, f"r{i}") for i in range(14)]
    arrivals = [rng.randint(0, 12) for _ in requests]
    victims = {rng.randint(1, 15): [f"r{rng.randrange(14)}"] for _ in range(2)}
    engine = make_engine(deterministic=deterministic)
    together = results(run(engine, requests, arrivals=arrivals, aborts=victims))
    gone = {name for names in victims.values() for name in names}
    for item in requests:
        alone = results(run(make_engine(deterministic=deterministic), [item]))
        for key, expected in alone.items():
            if key not in together:
                assert key[0] in gone, f"seed {seed}: {key} is missing"
                continue
            difference = np.abs(together[key] - expected).max()
            assert difference <= (0 if deterministic else 1), f"seed {seed}: {key}"


def test_the_check_above_can_fail(make_engine):
    """Co-tenants that leak into a row are seen."""

    class Leaky(ToyFamily):
        def denoise(self, key, rows):
            predictions = super().denoise(key, rows)
            return predictions + 0.1 * predictions.mean(0, keepdim=True)

    requests = [request(f"r{i}", seed=i) for i in range(3)]
    together = results(run(make_engine(Leaky()), requests))
    alone = results(run(make_engine(Leaky()), requests[:1]))
    assert np.abs(together["r0", 0] - alone["r0", 0]).max() > 1


def test_tasks_guidance_and_timesteps_share_one_call(make_engine):
    family = ToyFamily()
    engine = make_engine(family)
    image = picture()
    requests = [
        request("t2i", num_inference_steps=12),
        request("t2i without guidance", guidance_scale=1.0, num_inference_steps=11),
        request("i2i", task=ImageTask.IMAGE_TO_IMAGE, image=image, num_inference_steps=13),
        request("inpaint", task=ImageTask.INPAINT, image=image, mask=mask(), num_inference_steps=9),
    ]
    run(engine, requests)
    assert max(rows for _, rows, _ in family.calls) == 2 + 1 + 2 + 2


def test_the_unconditional_row_is_left_out_where_guidance_does_nothing(make_engine):
    family = ToyFamily()
    run(make_engine(family), [request(guidance_scale=1.0, num_inference_steps=3)])
    assert [rows for _, rows, _ in family.calls] == [1, 1, 1]
    family.calls.clear()
    run(make_engine(family), [request(guidance_start=0.5, num_inference_steps=4)])
    assert [rows for _, rows, _ in family.calls] == [1, 1, 2, 2]


def test_editing_uses_three_branches_and_its_own_weights(make_engine):
    family = ToyFamily()
    run(make_engine(family), [request(task=ImageTask.EDIT, image=picture())])
    assert {(key, rows) for key, rows, _ in family.calls} == {("edit", 3)}


def test_seeds_count_up_and_are_told(make_engine):
    engine = make_engine()
    events = run(engine, [request("many", n=3, seed=40), request("one", seed=41)])
    pictures = results(events)
    assert np.array_equal(pictures["many", 1], pictures["one", 0])
    assert not np.array_equal(pictures["many", 0], pictures["many", 2])
    finished = [e for e in events if e.image is not None]
    assert {(e.request_id, e.index, e.seed) for e in finished} == {
        ("many", 0, 40), ("many", 1, 41), ("many", 2, 42), ("one", 0, 41)
    }  # fmt: skip


def test_pixels_outside_the_mask_are_the_inputs_bytes(make_engine):
    image, hole = picture(35, 29), mask(35, 29, (9, 9, 20, 17))
    item = request(image=image, mask=hole, task=ImageTask.INPAINT, width=35, height=29)
    (event,) = [e for e in run(make_engine(), [item]) if e.image is not None]
    assert (event.image.width, event.image.height) == (35, 29)
    before = np.frombuffer(image.data, np.uint8).reshape(29, 35, 3)
    after = np.frombuffer(event.image.data, np.uint8).reshape(29, 35, 3)
    outside = np.frombuffer(hole.data, np.uint8).reshape(29, 35) == 0
    assert np.array_equal(before[outside], after[outside])
    assert not np.array_equal(before[~outside], after[~outside])


def test_prompts_are_encoded_once(make_engine):
    family = ToyFamily()
    engine = make_engine(family)
    run(engine, [request(f"r{i}", seed=i) for i in range(4)])
    assert len(family.encoded) == 2
    assert engine.stats().prompt_cache_hits == 6
    run(engine, [request("other", clip_skip=1), request("third", prompt_syntax=PromptSyntax.COMFY)])
    # The skipped layers are the prompt's alone: the other request's negative prompt is known.
    assert len(family.encoded) == 5


def test_previews_come_in_order_and_before_the_result(make_engine):
    events = run(make_engine(), [request(num_previews=3, num_inference_steps=8)])
    previews = [e for e in events if e.preview is not None]
    assert [e.preview_index for e in previews] == [0, 1, 2]
    assert events.index(previews[-1]) < next(i for i, e in enumerate(events) if e.image)


def test_a_preview_names_the_step_that_it_was_taken_at(make_engine):
    class Slow(ToyFamily):
        """Decodes no preview before the last denoiser call."""

        def denoise(self, key, rows):
            if len(self.calls) == 7:
                last_call.set()
            return super().denoise(key, rows)

        def preview(self, latents):
            assert last_call.wait(30)
            return self.decode(latents)

    last_call = threading.Event()
    events = run(make_engine(Slow()), [request(num_previews=3, num_inference_steps=8)])
    assert [e.step for e in events if e.preview is not None] == [2, 4, 6]


def test_bad_requests_are_answered_and_the_others_go_on(make_engine):
    events = run(
        make_engine(),
        [
            request("bad", image=picture(), mask=mask(16, 16), task=ImageTask.INPAINT, n=2),
            request("unknown schedule", scheduler="k_euler"),
            request("good"),
        ],
    )
    failed = [(e.request_id, e.index) for e in events if e.finish_reason is FinishReason.ERROR]
    assert failed == [("bad", 0), ("bad", 1), ("unknown schedule", 0)]
    assert ("good", 0) in results(events)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("fcfs", ["first", "second", "urgent", "third", "also urgent"]),
        ("priority", ["first", "urgent", "also urgent", "second", "third"]),
    ],
)
def test_the_policy_says_whose_turn_is_next(make_engine, policy, expected):
    engine = make_engine(max_num_queued=4, max_num_images=1, scheduling_policy=policy)
    engine.add(request("first", num_inference_steps=20))
    engine.step()
    for name in ("second", "urgent", "third", "also urgent"):
        engine.add(replace(request(name), priority=-1 if "urgent" in name else 0))
    with pytest.raises(QueueFull, match="the limit is 4"):
        engine.add(request("too late"))
    assert [e.request_id for e in run(engine) if e.image is not None] == expected


@pytest.mark.parametrize(("policy", "expected"), [("fcfs", ["a", "b"]), ("priority", ["b", "a"])])
def test_a_priority_acts_on_steps_under_its_policy_only(make_engine, policy, expected):
    """Two of one shape, of which a call takes one."""
    engine = make_engine(max_num_rows=2, scheduling_policy=policy)
    steps = {"num_inference_steps": 4, "guidance_scale": 3.0}
    items = [replace(request(name, **steps), priority=p) for name, p in (("a", 0), ("b", -1))]
    assert [e.request_id for e in run(engine, items) if e.image is not None] == expected


@pytest.mark.parametrize("kind", [GuidanceKind.DISTILLED, GuidanceKind.NONE])
def test_a_negative_prompt_that_cannot_act_is_warned_about(make_engine, kind):
    family = ToyFamily(guidance=kind)
    events = run(make_engine(family), [request(negative_prompt="blue")])
    assert "no effect" in events[-1].warnings[0]
    assert {rows for _, rows, _ in family.calls} == {1}


def test_a_negative_prompt_at_scale_one_is_warned_about(make_engine):
    (warning,) = run(make_engine(), [request(negative_prompt="x", guidance_scale=1.0)])[-1].warnings
    assert "guidance_scale is 1" in warning


def test_guidance_at_scale_one_equals_the_conditional_row_alone(make_engine):
    off = results(run(make_engine(), [request(guidance_scale=1.0)]))
    near = results(run(make_engine(), [request(guidance_scale=1.0 + 1e-6)]))
    assert np.abs(off["r", 0] - near["r", 0]).max() <= 1


def test_totals_add_up(make_engine):
    engine = make_engine()
    run(engine, [request("a", num_inference_steps=4, n=2), request("b", num_inference_steps=6)])
    stats = engine.stats()
    assert stats.num_images == 3
    assert stats.num_image_steps == 4 + 4 + 6
    assert stats.num_rows == 2 * stats.num_image_steps
    assert stats.megapixel_steps == pytest.approx(14 * 32 * 32 / 1e6)


def test_requests_that_are_quick_to_prepare_start_together(make_engine, monkeypatch):
    monkeypatch.setattr("engine.diffusion.engine._ADMIT_S", 60.0)
    engine = make_engine()
    for i in range(5):
        engine.add(request(f"r{i}", prompt=f"{i}"))
    engine.step()
    assert (engine.stats().num_running, engine.stats().num_waiting) == (5, 0)


def test_requests_that_are_slow_to_prepare_start_one_a_step(make_engine, monkeypatch):
    monkeypatch.setattr("engine.diffusion.engine._ADMIT_S", 0.0)
    monkeypatch.setattr("engine.diffusion.engine._ADMIT_SHARE_OF_STEP", 0.0)
    engine = make_engine()
    for i in range(3):
        engine.add(request(f"r{i}", prompt=f"{i}"))
    running = []
    for _ in range(3):
        engine.step()
        running.append(engine.stats().num_running)
    assert running == [1, 2, 3]


def test_guidance_of_an_empty_interval_is_off_and_warned_about(make_engine):
    family = ToyFamily()
    options = {"guidance_start": 0.0, "guidance_end": 0.0}
    events = run(make_engine(family), [request(**options)])
    assert {rows for _, rows, _ in family.calls} == {1}
    (warning,) = events[-1].warnings
    assert "none of the 4 steps lies between guidance_start 0 and guidance_end 0" in warning
    off = results(run(make_engine(), [request(guidance_scale=1.0)]))
    assert np.array_equal(results(events)["r", 0], off["r", 0])


def test_each_of_several_input_images_is_drawn_from(make_engine):
    """Each gives what it gives when it is sent alone with the seeds of its results."""
    images = [picture(seed=1), picture(seed=2), picture(48, 24, seed=3)]
    options = {"task": ImageTask.EDIT, "seed": 5}
    several = replace(request(n=6, **options), images=images)
    together = results(run(make_engine(), [several]))
    assert len(together) == 6
    for index in range(6):
        one = request(image=images[index // 2], task=ImageTask.EDIT, seed=5 + index)
        alone = results(run(make_engine(), [one]))["r", 0]
        # What shares a call acts through rounding.
        assert np.abs(together["r", index].astype(int) - alone).max() <= 1
