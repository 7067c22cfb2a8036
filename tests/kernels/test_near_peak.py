"""Top-n-sigma and dynamic temperature: llama.cpp's definitions, written out in double precision."""

import random

import numpy as np
import pytest
import torch

from kernels.sample_tokens import SamplingRows, noise, packed_row
from kernels.sample_tokens.reference import kept_weights

CPU = torch.device("cpu")


def num_kept(run, logits, **parameters):
    packed = [packed_row(**parameters)]
    logits = torch.as_tensor(logits, dtype=torch.float32).unsqueeze(0)
    return int(run(logits, SamplingRows.from_host(packed, [0], None, CPU)).num_kept)


def knobs(**parameters):
    return SamplingRows.from_host([packed_row(**parameters)], [0], None, CPU).host_knobs()[0]


def probabilities(logits, **parameters):
    """What the reference draws from, which the others equal bit for bit."""
    kept = kept_weights(torch.as_tensor(logits, dtype=torch.float32), knobs(**parameters)).double()
    return (kept / kept.sum()).numpy()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("num_sigmas", [0.4, 1.0, 2.7, 100.0])
def test_tokens_within_so_many_sigmas_stay(scale, num_sigmas):
    rng = np.random.default_rng(random.getrandbits(64))
    logits = rng.normal(5, 1, 3000).astype(np.float32) * np.float32(scale)
    logits[rng.random(3000) < 0.2] = -np.inf
    possible = logits[np.isfinite(logits)].astype(np.float64)
    bound = possible.max() - num_sigmas * possible.std()
    kept = probabilities(logits, top_n_sigma=num_sigmas, temperature=1e6 * scale) > 0
    near = np.abs(logits - bound) < 1e-5 * scale
    assert np.array_equal((kept | near), (logits >= bound) | near)
    assert kept.any()


def test_no_temperature_changes_who_stays(run):
    logits = np.random.uniform(-2, 2, 400)
    expected = num_kept(run, logits, top_n_sigma=1.5)
    assert 1 < expected < 400
    for temperature in (0.5, 1.9):
        found = num_kept(run, logits, top_n_sigma=1.5, temperature=temperature)
        assert found == expected


@pytest.mark.parametrize(
    ("logits", "num_sigmas", "kept"),
    [
        ([1.0], 1e-9, 1),
        ([-torch.inf, 7.0, -torch.inf], 1e-9, 1),
        ([2.0] * 65, 1e-9, 65),  # no deviation: all are the greatest
        ([0.0, 1.0], 1.99, 1),
        ([0.0, 1.0], 2.0, 2),  # at the bound
        ([0.0, 0.0, 0.0, 4.0], 2.3, 1),
        ([0.0, 0.0, 0.0, 4.0], 2.4, 4),
        ([3.0e38, -3.0e38], 1.9, 1),  # the distance is beyond fp32
        ([1e-40, 0.0, 0.0], 1e-9, 3),
        ([0.0, 1.0] * 50, 1e-300, 50),
        ([0.0, 1.0] * 50, 0.0, 100),  # off
    ],
)
def test_borders(run, logits, num_sigmas, kept):
    parameters = {"top_n_sigma": num_sigmas, "temperature": 1e30}
    assert num_kept(run, logits, **parameters) == kept


def test_later_steps_see_what_it_leaves(run):
    logits = [3.0, 3.0, 3.0, 2.9, -5.0, -5.0, -5.0, -5.0]
    assert num_kept(run, logits, top_n_sigma=1.0) == 4
    assert num_kept(run, logits, top_n_sigma=1.0, top_k=7) == 4
    assert num_kept(run, logits, top_n_sigma=1.0, top_k=2) == 2
    assert num_kept(run, logits, top_n_sigma=1.0, top_p=0.3) == 2
    assert num_kept(run, logits, top_n_sigma=1.0, top_p=0.999, temperature=100.0) == 4


def dynamic(logits, temperature, reach, exponent):
    """llama.cpp's `llama_sampler_temp_ext`."""
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    some = p[p > 0]
    share = -(some * np.log(some)).sum() / np.log(np.isfinite(logits).sum())
    low, high = max(0.0, temperature - reach), temperature + reach
    p = np.exp((logits - logits.max()) / (low + (high - low) * share**exponent))
    return p / p.sum()


@pytest.mark.parametrize("spread", [0.05, 1.0, 4.0, 12.0])
def test_the_temperature_follows_the_entropy(spread):
    rng = np.random.default_rng(random.getrandbits(64))
    logits = rng.normal(0, spread, 2000).astype(np.float32)
    logits[rng.random(2000) < 0.1] = -np.inf
    for temperature, reach, exponent in ((1.0, 0.7, 1.0), (0.8, 2.0, 0.5), (1.5, 0.2, 4.0)):
        found = probabilities(
            logits, temperature=temperature, dynatemp_range=reach, dynatemp_exponent=exponent
        )
        expected = dynamic(logits, temperature, reach, exponent)
        np.testing.assert_allclose(found, expected, rtol=3e-4, atol=1e-7)


def test_a_flat_row_has_the_highest_temperature_and_a_sure_one_the_lowest():
    flat = np.zeros(50)
    flat[0] = 1e-3
    for exponent in (0.5, 1.0, 20.0):
        found = probabilities(flat, dynatemp_range=0.5, dynatemp_exponent=exponent)
        np.testing.assert_allclose(found[0] / found[1], np.exp(1e-3 / 1.5), rtol=1e-5)
    sure = np.array([40.0, 0.0, -1.0])
    found = probabilities(sure, temperature=10.0, dynatemp_range=2.0)
    np.testing.assert_allclose(found[0] / found[1], np.exp(40.0 / 8.0), rtol=0.1)
    assert probabilities(sure, temperature=0.5, dynatemp_range=2.0).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("logits", [[1.0], [-torch.inf, 2.0], [0.0, -3e38], [3e38, 3e38, -3e38]])
def test_few_tokens_and_far_ones(run, logits):
    greatest = sum(value == max(logits) for value in logits)
    parameters = {"dynatemp_range": 0.5, "dynatemp_exponent": 100.0}
    assert num_kept(run, logits, **parameters) == greatest
    assert num_kept(run, logits, **parameters, top_n_sigma=0.1) == greatest


def test_neutral_values_change_nothing(run):
    seed = random.randrange(1 << 31)
    logits = 2 * torch.randn(6, 300)
    off = {"dynatemp_range": 0.0, "dynatemp_exponent": 7.0, "top_n_sigma": 0.0}

    def drawn(**parameters):
        packed = [packed_row(seed=seed, **parameters)] * 6
        result = run(logits, SamplingRows.from_host(packed, [*range(6)], None, CPU))
        return result.token_ids.tolist(), result.num_kept.tolist()

    assert drawn() == drawn(**off)
    greedy = drawn(temperature=0.0)
    assert drawn(temperature=0.0, dynatemp_range=2.0, top_n_sigma=1.0) == greedy


def test_the_logarithm_is_precise():
    x = torch.cat([torch.logspace(-30, 18, 10_001), torch.linspace(0.5, 2.0, 10_001)])
    found, expected = noise.logarithm(x).double(), x.double().log()
    error = (found - expected).abs() / expected.abs().clamp(min=1e-6)
    assert float(error.max()) < 3e-7
    assert float(noise.logarithm(torch.tensor(1.0))) == 0.0
