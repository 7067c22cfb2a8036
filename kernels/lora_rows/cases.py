"""Inputs for `lora_rows`: layers of models that draw images, ranks, rows with several adapters and
with none."""

import random
from dataclasses import dataclass
from typing import Any

import torch

from kernels.lora_rows.updates import RowUpdates
from kernels.shared.tolerances import FLOATS
from kernels.shared.work import Work, num_bytes

TOLERANCE = dict.fromkeys(FLOATS, 2e-5)
"""The tolerance for sums in fp32 of up to 1280 products in another order. Numbers are fp32 for
every requested dtype."""


@dataclass(frozen=True)
class Case:
    """`rows` of `positions`, each with its own choice of adapters, one for each of the `ranks`."""

    name: str
    rows: int
    positions: int
    outputs: int
    inputs: int
    ranks: tuple[int, ...] = (16,)
    share: float = 0.5
    """The approximate share of the rows that have an adapter."""


CASES = (
    Case("shapes_16x16_cells", 4, 256, 64, 64, (16, 4)),
    Case("sd15_8x8_cells", 2, 64, 320, 1280, (8, 32), 0.7),
    Case("one_position", 5, 1, 37, 131, (5, 1, 20)),
    Case("ranks", 6, 29, 40, 33, (1, 3, 7, 8, 12, 17, 64)),
    Case("wide_ranks", 3, 13, 72, 24, (200, 256), 0.8),
    Case("one_output", 3, 14, 1, 9, (2,)),
    Case("one_input", 3, 14, 9, 1, (18,)),
    Case("tiny", 1, 1, 1, 1, (1,), 1.0),
    Case("only_without", 3, 20, 40, 24, ()),
    Case("no_positions", 2, 0, 8, 8),
    Case("no_rows", 0, 4, 8, 8),
)
BENCHMARKS: dict[str, tuple[Case, ...]] = {
    "cpu": (
        Case("shapes 16x16 cells, 8 of rank 16", 16, 256, 64, 64, (16,) * 8, 1 / 8),
        Case("sd15 64x64 cells, rank 16", 2, 4096, 320, 320, (16,), 1.0),
    ),
    "cuda": (),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    return {
        "y": torch.randn(case.rows, case.positions, case.outputs),
        "x": torch.randn(case.rows, case.positions, case.inputs),
        "updates": tuple(_updates(case, rank) for rank in case.ranks),
    }


def _updates(case: Case, rank: int) -> RowUpdates:
    a = torch.randn(case.inputs, rank) / case.inputs**0.5
    b = torch.randn(rank, case.outputs) / rank**0.5
    count = round(case.share * case.rows)
    rows = torch.tensor(random.sample(range(case.rows), count), dtype=torch.int64)
    return RowUpdates(a.t(), b.t(), rows, torch.rand(count) + 0.5)


def outputs(result: None, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return (inputs["y"],)


def work(inputs: dict[str, Any]) -> Work:
    """The work: two thin products for each row and adapter; rows and adapters are read once."""
    y, x, updates = (inputs[name] for name in ("y", "x", "updates"))
    products = sum(len(one.rows) * (one.a.numel() + one.b.numel()) for one in updates)
    return Work(num_bytes((x, y, y, updates)), 2 * x.shape[1] * products)
