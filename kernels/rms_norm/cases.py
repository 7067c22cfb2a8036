"""Inputs for `rms_norm`: model shapes, odd sizes, strided rows, no rows at all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.shared.tolerances import FLOATS

# Sums in fp32 in another order, a root and a quotient.
TOLERANCE = dict.fromkeys(FLOATS, 1e-5)


@dataclass(frozen=True)
class Case:
    """`rows` of `size` elements."""

    name: str
    rows: int
    size: int
    strided: bool = False
    """Whether rows are views of wider ones."""
    scale: float = 1.0
    fp32_weight: bool = False
    offset: float = 0.0


CASES = (
    Case("smollm2_decode", 1, 576),
    Case("smollm2_batch", 33, 576),
    Case("llama_chunk", 257, 4096),
    Case("one_element", 5, 1),
    Case("odd", 63, 257),
    Case("fp32_weight", 9, 96, fp32_weight=True),
    Case("no_rows", 0, 64),
    Case("strided", 17, 64, strided=True),
    Case("tiny_values", 3, 128, scale=1e-4),
    Case("large_values", 3, 128, scale=1e3),
    Case("gemma", 9, 640, offset=1.0),
    Case("gemma_fp32_weight", 3, 257, fp32_weight=True, offset=1.0),
)
BENCHMARKS = {
    "cpu": (
        Case("smollm2 decode 1", 1, 576),
        Case("smollm2 decode 32", 32, 576),
        Case("llama3_8b prompt 512", 512, 4096),
    ),
    "cuda": (
        Case("llama3_8b decode 1", 1, 4096),
        Case("llama3_8b decode 64", 64, 4096),
        Case("llama3_8b prompt 8192", 8192, 4096),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""
COMPILED = (
    *BENCHMARKS["cuda"],
    Case("qwen3_0.6b decode 1", 1, 1024),
    Case("smollm2 decode 1", 1, 576),
)
"""Launches that `kernels.tools.compile` compiles ahead of time."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    weight = torch.rand(case.size, device=device).add_(0.5 - case.offset)
    return {
        "x": rows(case, dtype, device),
        "weight": weight if case.fp32_weight else weight.to(dtype),
        "eps": 1e-5,
        "offset": case.offset,
    }


def rows(case: Case, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make [rows, size] normal numbers."""
    width = case.size * 2 if case.strided else case.size
    x = torch.randn(case.rows, width, device=device) * case.scale
    return x.to(dtype)[:, : case.size]
