"""Named noise schedules: conversions between predictions and x0, noising, starts, defaults."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusionImg2ImgPipeline

from engine.diffusion.noise_schedule import DIFFUSION_SCHEDULES, FLOW_SCHEDULES, NoiseSchedules
from engine.errors import InvalidParameter
from tests.helpers.diffusion.schedule_configs import DIFFUSION, FLOW

NO_SAMPLE_PREDICTION = ("pndm", "euler_ancestral")
"""diffusers' classes refuse models that predict the sample itself."""
CASES = [
    *((DIFFUSION, DIFFUSION_SCHEDULES, kind, name)
      for name in DIFFUSION_SCHEDULES for kind in ("epsilon", "v_prediction", "sample")
      if kind != "sample" or name not in NO_SAMPLE_PREDICTION),
    *((FLOW, FLOW_SCHEDULES, None, name) for name in FLOW_SCHEDULES),
]  # fmt: skip
IDS = [f"{name}-{kind or 'flow'}" for _, _, kind, name in CASES]


def schedules(config, named, kind=None):
    return NoiseSchedules(config if kind is None else {**config, "prediction_type": kind}, named)


@pytest.mark.parametrize(("config", "named", "kind", "name"), CASES, ids=IDS)
def test_x0_and_back(config, named, kind, name):
    schedule = schedules(config, named, kind).create(name, 7)
    seed = torch.initial_seed()
    for index in range(schedule.num_timesteps):
        prediction, sample = torch.randn(2, 1, 4, 5, 6)
        x0 = schedule.to_x0(prediction, sample, index)
        back = schedule.from_x0(x0, sample, index)
        torch.testing.assert_close(back, prediction, atol=2e-3, rtol=1e-3, msg=f"seed {seed}")


@pytest.mark.parametrize(("config", "named", "kind", "name"), CASES, ids=IDS)
def test_a_perfect_denoiser_is_recognised_at_every_timestep(config, named, kind, name):
    """The prediction that belongs to (x0, noise) leads back to x0, by its definition."""
    schedule = schedules(config, named, kind).create(name, 7)
    x0, noise = torch.randn(2, 1, 4, 5, 6)
    for index in range(schedule.num_timesteps):
        signal, sigma = schedule.scales(index)
        sample = schedule.noised(x0, noise, index)
        norm = (signal**2 + sigma**2) ** 0.5
        prediction = {
            "epsilon": noise,
            "v_prediction": (signal / norm) * noise - (sigma / norm) * x0,
            "sample": x0,
            None: noise - x0,
        }[kind]
        implied = schedule.to_x0(prediction, sample, index)
        torch.testing.assert_close(implied, x0, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(("config", "named", "kind", "name"), CASES, ids=IDS)
def test_a_perfect_denoiser_reaches_x0(config, named, kind, name):
    schedule = schedules(config, named, kind).create(name, 12)
    x0, noise = torch.randn(2, 1, 4, 8, 8)
    generator = torch.Generator().manual_seed(1)
    sample = noise * schedule.init_noise_sigma
    for index in range(schedule.num_timesteps):
        schedule.scale(sample, index)
        prediction = schedule.from_x0(x0, sample, index)
        sample = schedule.step(prediction, index, sample, generator)
    # The last step of some samplers stops at the first training timestep, not at zero noise.
    torch.testing.assert_close(sample, x0, atol=0.15, rtol=0.05)


@pytest.mark.parametrize("strength", [0.01, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("name", sorted(DIFFUSION_SCHEDULES))
def test_noising_at_a_strength_equals_diffusers(name, strength):
    ours = schedules(DIFFUSION, DIFFUSION_SCHEDULES).create(name, 20)
    theirs = schedules(DIFFUSION, DIFFUSION_SCHEDULES).create(name, 20)._scheduler
    begin = ours.start_of(strength, 20)
    if begin >= ours.num_timesteps:
        assert int(20 * strength) == 0
        return
    theirs.set_begin_index(begin) if hasattr(theirs, "set_begin_index") else None
    x0, noise = torch.randn(2, 1, 4, 5, 6)
    expected = theirs.add_noise(x0, noise, ours.timesteps[begin : begin + 1])
    torch.testing.assert_close(ours.noised(x0, noise, begin), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "named", "pipeline"),
    [
        (DIFFUSION, DIFFUSION_SCHEDULES, StableDiffusionImg2ImgPipeline),
        (FLOW, FLOW_SCHEDULES, StableDiffusion3Img2ImgPipeline),
    ],
)
def test_a_strength_runs_the_steps_that_a_pipeline_of_diffusers_runs(config, named, pipeline):
    for name, num_steps in (("euler", 7), ("euler", 20), ("heun", 9)):
        for strength in (0.2, 0.55, 0.75, 0.99, 1.0):
            schedule = schedules(config, named).create(name, num_steps)
            theirs = SimpleNamespace(scheduler=schedule._scheduler)
            timesteps, _ = pipeline.get_timesteps(theirs, num_steps, strength, "cpu")
            begin = schedule.start_of(strength, num_steps)
            assert schedule.timesteps[begin:].tolist() == timesteps.tolist()


def test_a_name_says_how_sigmas_are_spaced_whatever_the_models_own_schedule_does():
    own = {**DIFFUSION, "_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}
    factory, plain = schedules(own, DIFFUSION_SCHEDULES), schedules(DIFFUSION, DIFFUSION_SCHEDULES)
    assert factory.default == "euler_karras"
    for name in ("euler", "euler_karras", "dpmpp_2m"):
        found, expected = factory.create(name, 7), plain.create(name, 7)
        assert torch.equal(found._scheduler.sigmas, expected._scheduler.sigmas)


def test_schedules_of_two_images_share_nothing():
    factory = schedules(DIFFUSION, DIFFUSION_SCHEDULES)
    first, second = factory.create("dpmpp_2m", 6), factory.create("dpmpp_2m", 6)
    generator = torch.Generator()
    samples = torch.randn(2, 1, 4, 4, 4)
    predictions = torch.randn(6, 1, 4, 4, 4)
    alone = factory.create("dpmpp_2m", 6)
    expected = samples[0]
    for index in range(6):
        expected = alone.step(predictions[index], index, expected, generator)
    mixed, other = samples
    for index in range(6):
        mixed = first.step(predictions[index], index, mixed, generator)
        other = second.step(-predictions[index], index, other, generator)
    assert torch.equal(mixed, expected)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde", "ddpm", "lcm"])
def test_ancestral_noise_comes_from_the_images_own_stream(name):
    factory = schedules(DIFFUSION, DIFFUSION_SCHEDULES)
    results = []
    for _ in range(2):
        torch.randn(100)  # the global stream moves on
        schedule, generator = factory.create(name, 5), torch.Generator().manual_seed(7)
        sample = torch.ones(1, 4, 4, 4)
        for index in range(5):
            schedule.scale(sample, index)
            sample = schedule.step(torch.zeros(1, 4, 4, 4), index, sample, generator)
        results.append(sample)
    assert torch.equal(*results)


def test_the_models_own_schedule_comes_first():
    karras = {**DIFFUSION, "_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
    assert schedules(karras, DIFFUSION_SCHEDULES).names[0] == "dpmpp_2m_karras"
    assert schedules(DIFFUSION, DIFFUSION_SCHEDULES).names[0] == "ddim"
    assert set(schedules(DIFFUSION, DIFFUSION_SCHEDULES).names) == set(DIFFUSION_SCHEDULES)


def test_models_that_predict_the_picture_are_offered_what_steps_by_it():
    offered = schedules(DIFFUSION, DIFFUSION_SCHEDULES, "sample").names
    assert set(offered) == set(DIFFUSION_SCHEDULES) - set(NO_SAMPLE_PREDICTION)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", DIFFUSION_SCHEDULES)
def test_as_many_steps_as_there_are_and_not_one_more(name, spacing):
    config = {**DIFFUSION, "timestep_spacing": spacing, "num_train_timesteps": 60}
    factory = schedules(config, DIFFUSION_SCHEDULES)
    spaces_one_more = name.startswith(("dpmpp", "deis", "unipc")) and spacing != "trailing"
    limit = 60 - (spacing == "leading") - spaces_one_more
    limit = min(limit, 50) if name in ("lcm", "tcd") else limit
    schedule, generator = factory.create(name, limit), torch.Generator().manual_seed(1)
    sample = torch.randn(1, 4, 4, 4) * schedule.init_noise_sigma
    for index in range(schedule.num_timesteps):
        schedule.scale(sample, index)
        sample = schedule.step(torch.zeros_like(sample), index, sample, generator)
    assert sample.isfinite().all()
    with pytest.raises(InvalidParameter, match=f"{name} takes at most {limit} with") as refusal:
        factory.create(name, limit + 1)
    assert refusal.value.param == "num_inference_steps"


def test_an_unknown_name_lists_the_offered_ones():
    with pytest.raises(InvalidParameter, match="use one of ddim, ddpm"):
        schedules(DIFFUSION, DIFFUSION_SCHEDULES).create("k_euler", 5)
