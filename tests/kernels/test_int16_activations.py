"""The rounding of activations to 16-bit integers."""

import torch

from kernels.linear_panels.int16_activations import MOST, round_to_int16


def rows_of_all_sizes(dtype):
    exponents = torch.randint(-90, 90, (500, 1))
    return torch.randn(500, 64).to(dtype) * torch.exp2(exponents).to(dtype)


def test_bf16_numbers_near_the_largest_stay_exact():
    x = rows_of_all_sizes(torch.bfloat16)
    q, scale = round_to_int16(x, 32)
    groups = x.double().view(q.shape)
    near = groups.abs() * 64 >= groups.abs().amax(-1, keepdim=True)
    assert torch.equal((q * scale.double())[near], groups[near])
    assert near.float().mean() > 0.9


def test_others_lose_half_a_scale_at_most():
    x = rows_of_all_sizes(torch.float32)
    q, scale = round_to_int16(x, 32)
    error = (q * scale.double() - x.double().view(q.shape)).abs()
    assert (error <= scale / 2).all()
    # The scale is the smallest that there is.
    most = q.abs().amax(-1)
    assert most.max() <= MOST
    assert most.min() >= MOST // 2


def test_the_largest_integer_is_two_signed_bytes():
    x = torch.ones(1, 32, dtype=torch.bfloat16)
    x[0, :2] = torch.tensor([255.0, -255.0])
    q, scale = round_to_int16(x, 32)
    upper = (q + 128) >> 8
    lower = q - 256 * upper
    for digit in (upper, lower):
        assert digit.min() >= -128
        assert digit.max() <= 127
    assert torch.equal((q * scale).view(x.shape), x.float())


def test_zeros_stay_and_what_is_not_finite_has_no_scale():
    x = torch.zeros(3, 32)
    x[1, 5], x[2, 9] = torch.inf, torch.nan
    q, scale = round_to_int16(x, 32)
    assert not q.any()
    assert scale.isnan().flatten().tolist() == [False, True, True]
