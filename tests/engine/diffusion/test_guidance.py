"""Guidance against its formulas, and where it must do nothing."""

import random

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance

from engine.diffusion.guidance import Guidance, combine_cfg, combine_dual, rescaled


@pytest.fixture
def predictions():
    seed = torch.initial_seed()
    print(f"seed {seed}")
    return [torch.randn(1, 4, 6, 5) for _ in range(3)]


def test_scale_one_is_the_conditional_prediction(predictions):
    conditional, unconditional, _ = predictions
    torch.testing.assert_close(combine_cfg(conditional, unconditional, 1.0), conditional)


def test_cfg_in_the_papers_form(predictions):
    """eps_c + w'(eps_c - eps_u) with w' = w - 1."""
    conditional, unconditional, _ = predictions
    paper = conditional + 6.5 * (conditional - unconditional)
    torch.testing.assert_close(combine_cfg(conditional, unconditional, 7.5), paper)


def test_dual_guidance_reduces_to_its_parts(predictions):
    full, image_only, unconditional = predictions
    both = combine_dual(full, image_only, unconditional, 1.0, 1.0)
    torch.testing.assert_close(both, full)
    image = combine_dual(full, image_only, unconditional, 0.0, 1.0)
    torch.testing.assert_close(image, image_only)
    neither = combine_dual(full, image_only, unconditional, 0.0, 0.0)
    torch.testing.assert_close(neither, unconditional)


def test_rescale_restores_the_standard_deviation(predictions):
    conditional, unconditional, _ = predictions
    guided = combine_cfg(conditional, unconditional, 9.0)
    restored = float(rescaled(guided, conditional, 1.0).std())
    assert restored == pytest.approx(float(conditional.std()), rel=1e-5)
    torch.testing.assert_close(rescaled(guided, conditional, 0.0), guided)


def test_rescale_matches_diffusers(predictions):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    conditional, unconditional, _ = predictions
    guided = combine_cfg(conditional, unconditional, 9.0)
    theirs = rescale_noise_cfg(guided, conditional, guidance_rescale=0.7)
    torch.testing.assert_close(rescaled(guided, conditional, 0.7), theirs)


@pytest.mark.parametrize(
    ("start", "end", "acting"),
    [
        (0.0, 1.0, list(range(10))),
        (0.2, 0.8, [2, 3, 4, 5, 6, 7]),
        (0.25, 0.55, [2, 3, 4]),
        (0.5, 0.5, []),
        (0.0, 0.0, []),
        (0.0, 0.09, []),
        (1.0, 1.0, []),
    ],
)
def test_the_interval_counts_steps(start, end, acting):
    guidance = Guidance(scale=5.0, start=start, end=end)
    assert [step for step in range(10) if guidance.acts_at(step, 10)] == acting
    assert guidance.acts_within(10) == bool(acting)


def test_the_interval_is_that_of_diffusers_guiders():
    """This holds at every number of steps, also where the shares end within a step."""
    seed = random.randrange(2**31)
    draw = random.Random(seed)
    for _ in range(300):
        start, num_steps = draw.choice([0.0, draw.random()]), draw.randint(1, 60)
        end = draw.choice([start, 1.0, draw.uniform(start, 1.0)])
        guider = ClassifierFreeGuidance(guidance_scale=5.0, start=start, stop=end)
        guidance = Guidance(scale=5.0, start=start, end=end)
        for step in range(num_steps):
            guider.set_state(step, num_steps, torch.tensor(0))
            theirs = guider.num_conditions == 2
            assert guidance.acts_at(step, num_steps) == theirs, (seed, start, end, step, num_steps)
