"""The integer arithmetic under the sampler: thresholds and draws at their edges."""

import numpy as np
import pytest
import torch

from engine.llm.truncation import DRAW_BLOCK, draw, keep_nucleus, last_key, weight_unit

ALMOST_ONE = 1.0 - 2.0**-53


@pytest.mark.parametrize("width", [1, 2, 7, DRAW_BLOCK, 4 * DRAW_BLOCK])
@pytest.mark.parametrize("uniform", [0.0, 2.0**-53, 0.5, ALMOST_ONE])
def test_weight_zero_is_never_drawn(width: int, uniform: float) -> None:
    seed = torch.seed() % 2**32
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        weights = torch.randint(0, 1 << 40, (6, width), generator=generator)
        weights *= torch.rand(6, width, generator=generator) < 0.3
        weights[:, torch.randint(width, (1,), generator=generator)] = 1
        columns = draw(weights, torch.full((6,), uniform, dtype=torch.float64))
        assert bool((weights.gather(1, columns.unsqueeze(1)) > 0).all()), seed


def test_draw_is_the_inverse_of_the_running_sum() -> None:
    seed = int(np.random.default_rng().integers(2**32))
    rng = np.random.default_rng(seed)
    for width in (5, 3 * DRAW_BLOCK) * 20:
        weights = rng.integers(0, 1 << int(rng.integers(1, 62 - width.bit_length())), (50, width))
        weights[:, width // 2] += 1
        numbers = np.where(rng.random(50) < 0.5, rng.random(50), ALMOST_ONE)
        columns = draw(torch.from_numpy(weights), torch.from_numpy(numbers)).tolist()
        for row, number, column in zip(weights.tolist(), numbers.tolist(), columns, strict=True):
            target = int(number * sum(row))
            assert sum(row[:column]) <= target < sum(row[: column + 1]), seed


def test_the_largest_totals_fit() -> None:
    vocab_size = (1 << 18) - 1
    weights = torch.full((1, vocab_size + 1), weight_unit(vocab_size), dtype=torch.int64)
    weights[:, -1] = 0
    for uniform, expected in [(0.0, 0), (ALMOST_ONE, vocab_size - 1)]:
        assert draw(weights, torch.tensor([uniform], dtype=torch.float64)).item() == expected


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-300, 1), (0.5, 1), (0.5000001, 2), (0.75, 2), (0.76, 3), (1.0, 4)]
)
def test_nucleus_is_the_shortest_prefix(top_p: float, kept: int) -> None:
    weights = torch.tensor([[1 << 40, 1 << 39, 1 << 38, 1 << 38]])
    total = weights.sum(-1, keepdim=True)
    reached = keep_nucleus(weights, total, torch.tensor([[top_p]], dtype=torch.float64))
    assert bool(reached.all())
    assert int((weights > 0).sum()) == kept


def test_nucleus_rounds_its_need_up() -> None:
    weights = torch.tensor([[4, 2, 1, 1]])
    keep_nucleus(weights, torch.tensor([[8]]), torch.tensor([[0.51]]).double())
    assert weights.tolist() == [[4, 2, 0, 0]]


def test_nucleus_says_when_it_is_cut_off() -> None:
    weights = torch.tensor([[4, 2, 1]])
    reached = keep_nucleus(weights, torch.tensor([[100]]), torch.tensor([[0.5]]).double())
    assert reached.tolist() == [False]
    assert weights.tolist() == [[4, 2, 1]]


@pytest.mark.parametrize("spread", [0.0, 1e-30, 1.0, 6e38])
def test_last_key_is_where_a_sort_finds_it(spread: float) -> None:
    seed = int(np.random.default_rng().integers(2**32))
    rng = np.random.default_rng(seed)
    for _ in range(30):
        num = int(rng.integers(1, 3000))
        costs = ((rng.random(num) - 0.5) * spread).astype(np.float32)
        # Keys fall as costs rise; equal costs get different keys in random order.
        order = np.lexsort((rng.random(num), costs))
        keys = np.empty(num, dtype=np.int64)
        keys[order] = np.arange(num, 0, -1) * 7 - 1000
        masses = rng.integers(1, 1 << 40, num)
        running = np.cumsum(masses[order])
        needed = int(rng.integers(1, running[-1] + 1))
        expected = keys[order][np.searchsorted(running, needed)]
        got = last_key(*map(torch.from_numpy, (keys, costs, masses)), needed)
        assert got.item() == expected, (seed, num, needed)
