"""Random numbers: published vectors, distribution, independence of the key's parts."""

import numpy as np
import pytest
from scipy import stats

from engine.llm.random_bits import philox4x32, uniforms

PI = ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0])


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
def test_philox_matches_the_published_vectors(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    other = [1, 2, 3, 4], [5, 6]  # a second row must not disturb the first
    counters = np.array([counter, other[0]], dtype=np.uint64)
    words = philox4x32(counters, np.array([key, other[1]], dtype=np.uint64))
    assert words[0].tolist() == expected


def test_numbers_are_uniform_over_positions_seeds_and_indices() -> None:
    num = 20_000
    start = int(np.random.default_rng().integers(0, 2**62))
    zeros, steps = [0] * num, list(range(num))
    streams = {
        "positions": uniforms([start] * num, zeros, steps),
        "seeds": uniforms([start + i for i in steps], zeros, zeros),
        "indices": uniforms([start] * num, steps, zeros),
    }
    for name, values in streams.items():
        assert values.min() >= 0.0, name
        assert values.max() < 1.0, name
        p_value = stats.kstest(values, "uniform").pvalue
        assert p_value > 1e-7, (name, start, p_value)
        correlation = np.corrcoef(values[:-1], values[1:])[0, 1]
        assert abs(correlation) < 6 / np.sqrt(num), (name, start, correlation)
    for a, b in [("positions", "seeds"), ("positions", "indices"), ("seeds", "indices")]:
        correlation = np.corrcoef(streams[a][1:], streams[b][1:])[0, 1]
        assert abs(correlation) < 6 / np.sqrt(num), (a, b, start, correlation)


def test_every_int64_seed_is_its_own() -> None:
    seeds = [0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**63 - 1, -(2**63), -(2**63) + 1]
    values = uniforms(seeds, [0] * len(seeds), [0] * len(seeds))
    assert len(set(values.tolist())) == len(seeds)


def test_a_row_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng()
    seeds = rng.integers(-(2**63), 2**63 - 1, 50).tolist()
    indices, positions = rng.integers(0, 128, 50).tolist(), rng.integers(0, 2**20, 50).tolist()
    together = uniforms(seeds, indices, positions)
    for i in range(50):
        assert uniforms(seeds[i : i + 1], indices[i : i + 1], positions[i : i + 1]) == together[i]


def test_no_rows() -> None:
    assert uniforms([], [], []).shape == (0,)


def test_all_53_bits_are_used() -> None:
    values = uniforms([7] * 4000, [0] * 4000, list(range(4000)))
    bits = (values * 2.0**53).astype(np.uint64)
    for bit in range(53):
        ones = int(((bits >> np.uint64(bit)) & np.uint64(1)).sum())
        assert abs(ones - 2000) < 6 * np.sqrt(1000), bit
