"""Steps in any order: the C++ operation beside the definition, bit for bit."""

import numpy as np
import pytest
import torch

from kernels import native
from kernels.sample_tokens import cases, narrow_cpu, ordered, sample_tokens
from kernels.sample_tokens.columns import STEPS
from kernels.sample_tokens.rows import SamplingRows, packed_row

pytestmark = pytest.mark.skipif(
    native.library() is None, reason="there is no C++ compiler, so there is nothing to compare"
)
SIZES = (1, 2, 63, 150, 997, 5000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _random_rows(rng: np.random.Generator, num_rows: int, size: int) -> SamplingRows:
    kinds = [cases._random_kind(rng) | {"least_probability": 0.0} for _ in range(num_rows)]
    kinds[0]["temperature"] = 0.0
    packed = [packed_row(**kind, seed=int(rng.integers(1 << 60))) for kind in kinds]
    edits = cases._edits(rng, num_rows, size) if rng.random() < 0.5 else None
    positions = rng.integers(0, 1 << 20, num_rows).tolist()
    return SamplingRows.from_host(packed, positions, edits, torch.device("cpu"))


def _random_orders(rng: np.random.Generator, num_rows: int) -> dict[int, list[str]]:
    """Give orders of some of the rows."""
    return {
        int(row): rng.permutation(STEPS)[: rng.integers(0, len(STEPS) + 1)].tolist()
        for row in rng.permutation(num_rows)[: rng.integers(1, num_rows + 1)]
    }


@pytest.mark.parametrize("logits", ["normal", "few", "equal", "masked", "extreme", "flat", "bad"])
def test_what_is_left_and_its_temperature(logits: str) -> None:
    rng = np.random.default_rng(int(torch.randint(1 << 31, ())))
    for size in SIZES:
        for dtype in DTYPES:
            some = [cases._LOGITS[logits](rng, size, row) for row in range(7)]
            # Some of a wider matrix's columns, as rows may be strided.
            values = torch.stack(some).to(dtype).repeat(1, 2)[:, :size]
            rows, orders = _random_rows(rng, 7, size), _random_orders(rng, 7)
            before = values.clone()
            found, expected = (
                narrow(values, rows, orders) for narrow in (narrow_cpu.narrow, ordered.narrow)
            )
            assert torch.equal(values.nan_to_num(), before.nan_to_num())
            assert torch.equal(found[0].nan_to_num(), expected[0].nan_to_num()), (size, orders)
            assert found[1].tolist() == expected[1].tolist(), (size, orders)


def test_rows_without_an_order_draw_what_they_would_draw() -> None:
    rng = np.random.default_rng(int(torch.randint(1 << 31, ())))
    logits = torch.stack([cases._LOGITS["normal"](rng, 300, row) for row in range(8)])
    rows = _random_rows(rng, 8, 300)
    orders = {2: ["top_p", "temperature"], 5: ["xtc", "min_p", "top_n_sigma"]}
    alone = sample_tokens(logits, rows).token_ids
    beside = sample_tokens(*ordered.in_order(logits, rows, orders)).token_ids
    others = [row for row in range(8) if row not in orders]
    assert alone[others].tolist() == beside[others].tolist()
