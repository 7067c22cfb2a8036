"""Inputs for `copy_matrices`: sizes of adapters, odd ones, empty ones, transposed ones."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.shared.tolerances import FLOATS
from kernels.shared.work import Work, num_bytes

TOLERANCE = dict.fromkeys(FLOATS, 0.0)


@dataclass(frozen=True)
class Case:
    """Shapes of sources, and the number of further rows in their outs."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    more_rows: int = 0
    turned: bool = False
    """Whether every second source is transposed."""
    to: torch.dtype | None = None
    """The dtype of the outs; None for that of the sources."""


_MANY = ((16, 576), (16, 1536), (5, 131), (1, 1), (3, 7), (7,), (16, 2049), (2500, 3))
CASES = (
    Case("same", _MANY),
    Case("longer", _MANY, more_rows=3),
    Case("turned", _MANY, turned=True),
    Case("turned_to_bf16", _MANY, more_rows=1, turned=True, to=torch.bfloat16),
    Case("to_fp16", _MANY, to=torch.float16),
    Case("to_fp32", _MANY, turned=True, to=torch.float32),
    Case("empty", ((0, 5), (0,), (4, 0)), more_rows=2, turned=True),
    Case("none", ()),
)
BENCHMARKS: dict[str, tuple[Case, ...]] = {
    "cpu": (
        Case("smollm2 rank 16", ((16, 576), (16, 1536)) * 210, turned=True, to=torch.bfloat16),
    ),
    "cuda": (),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    sources: list[Tensor] = []
    outs: list[Tensor] = []
    for index, (rows, *others) in enumerate(case.shapes):
        source = torch.randn(rows, *others, device=device).to(dtype)
        if case.turned and index % 2 and others:
            source = source.mT.contiguous().mT
        sources.append(source)
        to = case.to or dtype
        outs.append(torch.randn(rows + case.more_rows, *others, device=device).to(to))
    return {"outs": tuple(outs), "sources": tuple(sources)}


def outputs(result: int, inputs: dict[str, Any]) -> tuple[object, ...]:
    """Everything the op wrote, and its return value."""
    return (*inputs["outs"], torch.tensor(result))


def work(inputs: dict[str, Any]) -> Work:
    """Each number is read and written once."""
    return Work(num_bytes((*inputs["outs"], *inputs["sources"])), 0)
