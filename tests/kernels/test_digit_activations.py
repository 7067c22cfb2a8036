"""The rounding of activations to integers of one or two digits."""

import random

import pytest
import torch

from kernels.linear_panels.digit_activations import MOST, round_to_digits

GROUPS = (16, 32)


def two_digits(q):
    """Which quads have an upper digit."""
    return (q.abs() > 127).unflatten(-1, (-1, 4)).any(-1)


@pytest.mark.parametrize("group", GROUPS)
def test_one_quad_in_four_may_have_two_digits(group):
    x = torch.randn(500, 64) * torch.exp2(torch.randint(-60, 60, (500, 1)).float())
    q, scale = round_to_digits(x, group)
    assert two_digits(q).sum(-1).max() <= group // 16
    error = (q * scale.double() - x.double().view(q.shape)).abs()
    assert (error <= scale.double() / 2 * (1 + 1e-4)).all()
    # The scale is the smallest that there is.
    ordinary = q.abs().unflatten(-1, (-1, 4)).amax(-1).sort(-1).values
    assert (ordinary[..., -1 - group // 16] == 127).all()


@pytest.mark.parametrize("group", GROUPS)
def test_an_outlier_makes_no_other_number_coarse(group):
    x = torch.randn(200, group)
    plain, _ = round_to_digits(x, group)
    place = random.randrange(group)
    ordinary = torch.ones(group, dtype=torch.bool)
    ordinary[place // 4 * 4 : place // 4 * 4 + 4] = False
    x[:, place] = x[:, ordinary].abs().amax(1) * 250 * random.choice([-1, 1])
    q, scale = round_to_digits(x, group)
    found = (q * scale).view(x.shape)
    assert ((found - x).abs()[:, ordinary] <= x[:, ordinary].abs().amax() / 127 / 2 * 1.01).all()
    assert ((found - x)[:, place].abs() <= scale.flatten() / 2 * 1.01).all()
    assert q.shape == plain.shape


def test_beyond_two_digits_the_outlier_decides():
    x = torch.ones(1, 32)
    x[0, 3] = 1e6
    q, scale = round_to_digits(x, 32)
    assert q.max() == MOST
    assert (q * scale)[0, 0, 3].item() == pytest.approx(1e6, rel=1e-6)


def test_of_equal_quads_the_first_has_two_digits():
    x = torch.zeros(1, 32)
    x[0, torch.tensor([5, 12, 30])] = 3.0
    q, scale = round_to_digits(x, 32)
    assert q.abs().max() == 127, "a third quad is as large, so no number needs a second digit"
    x[0, 30] = 1.0
    q, scale = round_to_digits(x, 32)
    assert q[0, 0, [5, 12, 30]].tolist() == [381, 381, 127]
    assert scale.item() == pytest.approx(1 / 127)


def test_zeros_stay_and_what_is_not_finite_has_no_scale():
    x = torch.zeros(3, 32)
    x[1, 5], x[2, 9] = torch.inf, torch.nan
    q, scale = round_to_digits(x, 16)
    assert not q.any()
    assert scale.isnan().flatten().tolist() == [False, False, True, False, True, False]
