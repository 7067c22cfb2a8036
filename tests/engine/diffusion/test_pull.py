"""The pull towards the input: all of it at first, none at the end."""

import itertools

import pytest
import torch

from engine.diffusion.noise_schedule import DIFFUSION_SCHEDULES, FLOW_SCHEDULES, NoiseSchedules
from engine.diffusion.pull import LatentPull, noise_of
from tests.helpers.diffusion.toy_family import SCHEDULE, ToyFamily

NUM_STEPS = 12


def schedules():
    """Schedules of models that start from pure noise, and of those that nearly do."""
    plain = {**SCHEDULE, "rescale_betas_zero_snr": False, "timestep_spacing": "leading"}
    for config in (SCHEDULE, plain, {**plain, "prediction_type": "epsilon"}):
        made = NoiseSchedules(config, DIFFUSION_SCHEDULES)
        yield from (made.create(name, NUM_STEPS) for name in made.names)
    flow = NoiseSchedules({"_class_name": "FlowMatchEulerDiscreteScheduler"}, FLOW_SCHEDULES)
    yield from (flow.create(name, NUM_STEPS) for name in flow.names)


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("exponent", [0.5, 2.0, 8.0])
def test_the_share_falls_from_one_to_nothing(first, exponent):
    for schedule in schedules():
        case = (type(schedule._scheduler).__name__, schedule._scheduler.config)
        image, latents, prediction = torch.randn(3, 1, 4, 5, 6).split(1)
        image, latents, prediction = image[0], latents[0], prediction[0]
        pull = LatentPull(image, exponent, first)
        assert pull.input(latents, schedule, first) is latents
        assert pull.result(latents) is latents
        shares = []
        for index in range(first, schedule.num_timesteps):
            pulled = pull.prediction(prediction, latents, schedule, index)
            if schedule.scales(index)[1] == 0:
                assert pulled is prediction
                continue
            free, x0 = (
                schedule.to_x0(each, latents, index).double() for each in (prediction, pulled)
            )
            away = (free - image).norm()
            shares.append(1 - float((x0 - image).norm() / away))
        # At almost no signal x0 is what is left of large numbers.
        assert shares[0] == pytest.approx(1, abs=0.02), case
        assert all(b <= a + 0.02 for a, b in itertools.pairwise(shares)), case
        assert shares[-1] < 0.2, case


def test_noise_is_bounded():
    schedule = ToyFamily().new_noise_schedule(None, NUM_STEPS, 32, 32)
    levels = [noise_of(schedule, index) for index in range(schedule.num_timesteps + 1)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == 14.6146
    assert levels[-1] == 0
