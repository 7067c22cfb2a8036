"""Random numbers: published vectors, distribution, independence of the key's parts."""

import itertools
import random

import numpy as np
import pytest
import torch
from scipy import stats

from kernels.sample_tokens.noise import (
    exponential,
    exponentials,
    philox4x32,
    reciprocal,
    token_words,
)

CPU = torch.device("cpu")
PI = ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0])
LEAST_P_VALUE = 1e-9


def times(num_tokens, seed=0, index=0, position=0):
    return exponentials(num_tokens, seed=seed, index=index, position=position, device=CPU)


def fresh_seed():
    return random.randrange(-(2**63), 2**63)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            [0xFFFFFFFF] * 2,
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (*PI, [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ],
)
def test_philox_matches_the_published_vectors(counter, key, expected):
    other = [1, 2, 3, 4], [5, 6]  # a second row must not disturb the first
    words = philox4x32(torch.tensor([counter, other[0]]), torch.tensor([key, other[1]]))
    assert words[0].tolist() == expected


def test_sixteen_neighbours_have_the_same_word_of_sixteen_blocks():
    seed = fresh_seed()
    words = token_words(200, seed=seed, index=7, position=9, more=0, device=CPU)
    for token in (0, 15, 16, 63, 64, 100, 199):
        block = token // 64 * 16 + token % 16
        key = torch.tensor([[seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]])
        expected = philox4x32(torch.tensor([[9, 7, block, 0]]), key)[0, token % 64 // 16]
        assert words[token] == expected, (seed, token)


def test_numbers_are_exponential_over_tokens_positions_seeds_and_indices():
    seed, num = fresh_seed(), 700
    streams = {
        "tokens": times(num, seed),
        "positions": torch.stack([times(1, seed, position=i)[0] for i in range(num)]),
        "seeds": torch.stack([times(1, seed + i)[0] for i in range(num)]),
        "indices": torch.stack([times(1, seed, index=i)[0] for i in range(num)]),
    }
    for name, values in streams.items():
        assert float(values.min()) > 0.0, (name, seed)
        assert stats.kstest(values.double().numpy(), "expon").pvalue > LEAST_P_VALUE, (name, seed)
    for (a, first), (b, second) in itertools.product(streams.items(), repeat=2):
        pair = np.corrcoef(first[1:], second[:-1])[0, 1]
        assert abs(pair) < 7 / np.sqrt(num), (a, b, seed)


def test_a_large_sample_is_exponential_in_both_tails():
    seed, num = fresh_seed(), 2_000_000
    values = times(num, seed).double()
    for chance in (1e-5, 1e-3, 0.5):
        for side, count in {
            "low": int((values < -np.log1p(-chance)).sum()),
            "high": int((values > -np.log(chance)).sum()),
        }.items():
            deviation = (count - num * chance) / np.sqrt(num * chance)
            assert abs(deviation) < 7, (chance, side, seed)


def test_every_int64_seed_is_its_own():
    seeds = [0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**63 - 1, -(2**63), -(2**63) + 1]
    assert len({tuple(times(4, seed).tolist()) for seed in seeds}) == len(seeds)


def test_a_token_s_number_does_not_depend_on_the_vocabulary():
    seed = fresh_seed()
    whole = times(1000, seed)
    for num_tokens in (1, 15, 64, 65, 999):
        assert torch.equal(times(num_tokens, seed), whole[:num_tokens])


def test_the_logarithm_is_precise_at_both_ends():
    rng = np.random.default_rng(random.getrandbits(64))
    first = np.concatenate([
        [0, 1, 255, 256, (1 << 30) - 1, 1 << 30, (1 << 32) - 1],
        rng.integers(0, 1 << 32, 20_000),
        rng.integers(0, 300, 500),
        (1 << 32) - 1 - rng.integers(0, 300, 500),
    ])  # fmt: skip
    second = rng.integers(0, 1 << 32, len(first))
    got = exponential(torch.from_numpy(first), torch.from_numpy(second)).double().numpy()
    v = np.where(
        first < 256, first * 2.0**-32 + (second + 0.5) * 2.0**-64, (first + 0.5) * 2.0**-32
    )
    np.testing.assert_allclose(got, -np.log1p(-v), rtol=3e-7)


def test_all_bits_are_used():
    words = token_words(4000, seed=fresh_seed(), index=0, position=0, more=0, device=CPU)
    for bit in range(32):
        ones = int((words >> bit & 1).sum())
        assert abs(ones - 2000) < 7 * np.sqrt(1000), bit


def test_reciprocals_are_precise():
    rng = np.random.default_rng(random.getrandbits(64))
    x = torch.from_numpy(np.exp(rng.uniform(-45, 45, 10_000))).float()
    np.testing.assert_allclose(reciprocal(x).double(), 1 / x.double(), rtol=2.5e-7)
