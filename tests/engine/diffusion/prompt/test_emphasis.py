import math

import pytest
import torch

from engine.diffusion.prompt.emphasis import blend_without, move_from_empty, scale_keeping_mean

SEED = 41


@pytest.fixture
def states() -> torch.Tensor:
    """Like CLIP's: a mean that is small beside the spread, but is there."""
    return torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(SEED)) + 0.3


def test_scaling_keeps_the_mean_and_the_proportions(states):
    weights = torch.tensor([1.0, 1.3, 1.0, 0.5, 1.0, 2.0, 1.0])
    found = scale_keeping_mean(states, weights)
    assert found.mean().item() == pytest.approx(states.mean().item(), rel=1e-4)
    ratios = (found / states).mean(dim=-1)[0]
    torch.testing.assert_close(ratios / ratios[0], weights)


def test_scaling_all_alike_changes_nothing(states):
    torch.testing.assert_close(scale_keeping_mean(states, torch.full((7,), 3.0)), states)


@pytest.mark.parametrize("offset", [1e-6, -1e-6])
def test_a_mean_of_almost_nothing_is_not_restored(states, offset):
    flat = states - states.mean() + offset
    weights = torch.tensor([1.0, 1.3, 1.0, 0.5, 1.0, 2.0, 1.0])
    assert torch.equal(scale_keeping_mean(flat, weights), flat * weights[None, :, None])


def test_a_weight_of_zero_everywhere_is_zero(states):
    assert torch.equal(scale_keeping_mean(states, torch.zeros(7)), torch.zeros_like(states))


def test_moving_is_exact_at_one_and_at_zero(states):
    empty = states.flip(1) * 1e4  # enough for `e + (s - e)` to lose bits
    weights = torch.tensor([1.0, 0.0, 1.0, 2.0, 1.0, -1.0, 1.0])
    found = move_from_empty(states, empty, weights)
    assert torch.equal(found[:, ::2], states[:, ::2])
    torch.testing.assert_close(found[:, 1], empty[:, 1])
    torch.testing.assert_close(found[:, 3], 2 * states[:, 3] - empty[:, 3])
    torch.testing.assert_close(found[:, 5], 2 * empty[:, 5] - states[:, 5])


@pytest.mark.parametrize("weight", [0.9, 0.5, 0.25])
def test_one_lowered_fragment_mixes_by_tangent(states, weight):
    other = states.flip(1)
    share = math.tan((1 - weight) * math.pi / 2)
    expected = (states + share * other) / (1 + share)
    torch.testing.assert_close(blend_without(states, [other], [weight]), expected)


@pytest.mark.parametrize("weight", [0.0, -2.0])
def test_at_zero_the_fragment_is_gone(states, weight):
    other = states.flip(1)
    found = blend_without(states, [other], [weight])
    torch.testing.assert_close(found, other, atol=1e-3, rtol=1e-3)


def test_nothing_lowered_is_the_same_bits(states):
    assert torch.equal(blend_without(states, [], []), states)
