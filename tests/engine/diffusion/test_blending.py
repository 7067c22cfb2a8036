"""Inpainting against a plain loop on diffusers' schedulers that blends x0 by its own formulas."""

import math
import random
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from engine.diffusion.blending import LatentBlend
from engine.diffusion.noise_schedule import (
    DIFFUSION_SCHEDULES,
    FLOW_SCHEDULES,
    NoiseSchedule,
    NoiseSchedules,
)
from tests.helpers.diffusion.schedule_configs import DIFFUSION, FLOW

SEED = random.randrange(1 << 30)
SHAPE = (1, 4, 5, 7)
NUM_STEPS = 7

DIFFUSION_CONFIG = DIFFUSION | {"set_alpha_to_one": True}
TAKE_SAMPLE_PREDICTION = ("ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "deis", "unipc")

LEAVE_NOISE: tuple[Any, ...] = ("deis", "tcd", ("pndm", "v_prediction"))
"""The first two end at the schedule's smallest sigma (0.03); PNDM averages v over time."""

CASES = [
    *[(name, kind) for name in DIFFUSION_SCHEDULES for kind in ("epsilon", "v_prediction")],
    *[(name, "sample") for name in TAKE_SAMPLE_PREDICTION],
    *[(name, "flow") for name in FLOW_SCHEDULES],
]
Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def config_of(kind: str) -> dict[str, Any]:
    return FLOW if kind == "flow" else {**DIFFUSION_CONFIG, "prediction_type": kind}


def named(kind: str) -> Any:
    return FLOW_SCHEDULES if kind == "flow" else DIFFUSION_SCHEDULES


def schedule(name: str, kind: str) -> NoiseSchedule:
    return NoiseSchedules(config_of(kind), named(kind)).create(name, NUM_STEPS)


def diffusers_scheduler(name: str, kind: str) -> Any:
    entry = named(kind)[name]
    scheduler = getattr(diffusers, entry.class_name).from_config(config_of(kind), **entry.overrides)
    scheduler.set_timesteps(NUM_STEPS)
    return scheduler


class Draw:
    """Fresh random tensors of one test."""

    def __init__(self, seed: int = SEED) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def levels(self) -> torch.Tensor:
        levels = torch.rand((1, 1, *SHAPE[2:]), generator=self.generator)
        return torch.where(levels < 0.2, 0.0, torch.where(levels > 0.8, 1.0, levels))

    def denoiser(self) -> Denoiser:
        """Linear in the sample and moving with time: enough for any schedule to have history."""
        mix, shift = 0.3 * self.normal(SHAPE[1], SHAPE[1]), self.normal(1, SHAPE[1], 1, 1)

        def denoise(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            mixed = torch.einsum("oc,nchw->nohw", mix, sample)
            return mixed + shift * torch.cos(timestep.float() / 300)

        return denoise


def run(schedule, blend, denoise, latents, first=0):
    """The engine's loop, one sample."""
    generator = torch.Generator().manual_seed(7)
    for index in range(first, schedule.num_timesteps):
        if blend is not None:
            latents = blend.input(latents, schedule, index)
        prediction = denoise(schedule.scale(latents, index), schedule.timesteps[index])
        if blend is not None:
            prediction = blend.prediction(prediction, latents, schedule, index)
        latents = schedule.step(prediction, index, latents, generator)
    return latents


def reference(scheduler, kind, masks, clean, noise, denoise, latents, first):
    """x0-space blending as written in the paper's order, on a scheduler of its own.

    `masks(step, num_steps)` is 1 where to redraw.
    """
    generator = torch.Generator().manual_seed(7)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps = scheduler.timesteps[first:]
    for step, timestep in enumerate(timesteps):
        mask = masks(step, len(timesteps))
        signal, sigma = noise_levels(scheduler, timestep)
        latents = latents * mask + (signal * clean + sigma * noise) * (1 - mask)
        scaled = latents
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(latents, timestep)
        prediction = denoise(scaled, timestep)
        picture = x0_of(kind, prediction, latents, signal, sigma)
        picture = picture * mask + clean * (1 - mask)
        prediction = prediction_of(kind, picture, latents, signal, sigma)
        options = {}
        if "generator" in scheduler.step.__code__.co_varnames:
            options["generator"] = generator
        latents = scheduler.step(prediction, timestep, latents, **options).prev_sample
    return latents


def noise_levels(scheduler: Any, timestep: torch.Tensor) -> tuple[float, float]:
    """What diffusers itself mixes, read off by mixing ones and zeros."""
    add = getattr(scheduler, "scale_noise", None)
    one, zero, when = torch.ones(1), torch.zeros(1), timestep.reshape(1)
    if add is not None:
        return float(add(one, when, zero)), float(add(zero, when, one))
    return float(scheduler.add_noise(one, zero, when)), float(scheduler.add_noise(zero, one, when))


def x0_of(kind, prediction, sample, signal, sigma):
    if kind == "sample":
        return prediction
    if kind == "flow":
        return sample - sigma * prediction
    total = math.hypot(signal, sigma)
    unit, a, b = sample / total, signal / total, sigma / total
    return (unit - b * prediction) / a if kind == "epsilon" else a * unit - b * prediction


def prediction_of(kind, picture, sample, signal, sigma):
    if kind == "sample":
        return picture
    if kind == "flow":
        return (sample - picture) / sigma
    total = math.hypot(signal, sigma)
    unit, a, b = sample / total, signal / total, sigma / total
    return (unit - a * picture) / b if kind == "epsilon" else (a * unit - picture) / b


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_blending_is_the_plain_loop_over_x0(name, kind, soft, strength):
    draw = Draw()
    clean, noise, start = (draw.normal(*SHAPE) for _ in range(3))
    levels, denoise = draw.levels(), draw.denoiser()

    def masks(step: int, num_steps: int) -> torch.Tensor:
        if not soft:
            return (levels > 0).float()
        done = step / num_steps
        return ((levels > 0) & (levels >= 1 - done)).float()

    ours = schedule(name, kind)
    first = 0 if strength == 1 else ours.start_of(strength, NUM_STEPS)
    latents = start * ours.init_noise_sigma
    if first:
        latents = ours.noised(clean, start, first)
    blend = LatentBlend(levels, clean, noise, soft=soft, first_timestep_index=first)
    got = run(ours, blend, denoise, latents, first)
    theirs = diffusers_scheduler(name, kind)
    expected = reference(theirs, kind, masks, clean, noise, denoise, latents, first)
    assert torch.isfinite(got).all()
    difference = (got - expected).abs().max() / expected.abs().max()
    assert difference < 1e-4, f"seed {SEED}: {difference}"


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_mask_of_ones_changes_no_bit(name: str, kind: str, soft: bool) -> None:
    draw = Draw()
    clean, noise, start = (draw.normal(*SHAPE) for _ in range(3))
    denoise, ones = draw.denoiser(), torch.ones(1, 1, *SHAPE[2:])
    latents = start * schedule(name, kind).init_noise_sigma
    free = run(schedule(name, kind), None, denoise, latents)
    blend = LatentBlend(ones, clean, noise, soft=soft)
    blended = run(schedule(name, kind), blend, denoise, latents)
    assert torch.equal(blended, free), f"seed {SEED}"
    assert torch.equal(blend.result(blended), free)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_mask_of_zeros_leads_to_the_input(name: str, kind: str, soft: bool) -> None:
    draw = Draw()
    clean, noise, start = (draw.normal(*SHAPE) for _ in range(3))
    blend = LatentBlend(torch.zeros(1, 1, *SHAPE[2:]), clean, noise, soft=soft)
    ours = schedule(name, kind)
    latents = run(ours, blend, draw.denoiser(), start * ours.init_noise_sigma)
    tolerance = 0.25 if (name, kind) in LEAVE_NOISE or name in LEAVE_NOISE else 1e-3
    assert (latents - clean).abs().max() < tolerance, f"seed {SEED}"
    assert torch.equal(blend.result(latents), clean)
    assert torch.equal(blend.input(latents, ours, ours.num_timesteps), clean)


def test_what_is_outside_does_not_depend_on_what_the_denoiser_says_there() -> None:
    draw = Draw()
    clean, noise, start = (draw.normal(*SHAPE) for _ in range(3))
    mask = torch.zeros(1, 1, *SHAPE[2:])
    mask[..., :3] = 1
    ours = schedule("dpmpp_2m", "epsilon")
    blend = LatentBlend(mask, clean, noise)
    wild = run(ours, blend, lambda x, t: torch.full_like(x, torch.nan), start)
    assert torch.equal(blend.result(wild)[..., 3:], clean[..., 3:])
    assert torch.isfinite(wild[..., 3:]).all()


def test_a_soft_mask_lets_cells_go_in_the_order_of_their_levels() -> None:
    draw = Draw()
    clean, noise = draw.normal(1, 4, 1, 5), draw.normal(1, 4, 1, 5)
    levels = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).reshape(1, 1, 1, 5)
    ours = NoiseSchedules(DIFFUSION_CONFIG, DIFFUSION_SCHEDULES).create("ddim", 12)
    blend = LatentBlend(levels, clean, noise, soft=True, first_timestep_index=4)
    marker = torch.full_like(clean, 99.0)
    redrawn = [
        (blend.input(marker, ours, index) == 99.0)[0, 0, 0].tolist() for index in range(4, 12)
    ]
    for place, num_kept in ((0, 4), (2, 3), (4, 2), (6, 1)):
        assert redrawn[place] == [False] * num_kept + [True] * (5 - num_kept)
    assert redrawn[7] == redrawn[6], "level 0 is never redrawn"


@pytest.mark.parametrize("first", [0, 1, 2])
def test_timesteps_without_noise_divide_by_nothing(first: int) -> None:
    draw = Draw()
    clean, noise, start = (draw.normal(*SHAPE) for _ in range(3))
    ours = NoiseSchedules({**FLOW, "shift": 1.0}, FLOW_SCHEDULES).create(
        "euler", 3, sigmas=[1.0, 0.5, 0.0]
    )
    assert ours.scales(2) == (1.0, 0.0)
    blend = LatentBlend(draw.levels(), clean, noise, soft=True, first_timestep_index=first)
    latents = run(ours, blend, draw.denoiser(), start, first)
    assert torch.isfinite(latents).all()
    assert torch.isfinite(blend.input(latents, ours, 3)).all()


def test_schedules_that_start_without_signal_stay_finite() -> None:
    draw = Draw()
    clean, noise, start = (draw.normal(*SHAPE) for _ in range(3))
    config = {
        **DIFFUSION_CONFIG,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    denoise, levels = draw.denoiser(), draw.levels()
    for name in ("ddim", "euler", "dpmpp_2m", "unipc"):
        ours = NoiseSchedules(config, DIFFUSION_SCHEDULES).create(name, 8)
        blend = LatentBlend(levels, clean, noise)
        latents = run(ours, blend, denoise, start * ours.init_noise_sigma)
        assert torch.isfinite(latents).all(), (name, SEED)
        outside = (levels == 0).expand_as(clean)
        assert (latents - clean)[outside].abs().max() < 5e-3, (name, SEED)


def test_images_of_one_call_are_blended_each_by_its_own_mask() -> None:
    draw = Draw()
    clean, noise, start = (draw.normal(3, *SHAPE[1:]) for _ in range(3))
    masks = torch.cat([draw.levels() for _ in range(3)])
    prediction = draw.normal(3, *SHAPE[1:])
    ours = schedule("euler", "epsilon")
    whole = LatentBlend(masks, clean, noise, soft=True)
    sample = whole.input(start, ours, 3)
    blended = whole.prediction(prediction, sample, ours, 3)
    for i in range(3):
        one = LatentBlend(masks[i : i + 1], clean[i : i + 1], noise[i : i + 1], soft=True)
        alone = one.input(start[i : i + 1], ours, 3)
        assert torch.equal(alone, sample[i : i + 1])
        assert torch.equal(
            one.prediction(prediction[i : i + 1], alone, ours, 3), blended[i : i + 1]
        )
