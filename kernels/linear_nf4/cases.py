"""Inputs for `linear_nf4`: model shapes, block sizes, blocks across rows, odd sizes."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from kernels.shared.linear_cases import LinearCase
from kernels.shared.tolerances import ROUNDED_SUMS, ROUNDED_WEIGHTS
from kernels.shared.work import Work, product_work

TOLERANCE = ROUNDED_WEIGHTS
SLACK = {"composed": ROUNDED_SUMS}


@dataclass(frozen=True)
class Case(LinearCase):
    """A product with a weight of 4-bit numbers in blocks."""

    block_size: int = 64
    fp4: bool = False


_ACROSS_ROWS = (
    Case("blocks_across_rows", 3, 37, 96),
    Case("odd_rows", 5, 7, 33, bias=True),
    Case("one_of_each", 1, 1, 1),
)
CASES = (
    Case("llama3_down", 1, 31, 14336),
    Case("llama3_batch", 19, 72, 1024, bias=True),
    Case("smollm2_o", 2, 576, 576),
    Case("blocks_of_32", 3, 40, 160, block_size=32),
    Case("blocks_of_256", 3, 40, 512, block_size=256),
    Case("odd_outputs", 7, 37, 128, bias=True),
    Case("many_rows", 129, 130, 256),
    Case("strided", 17, 40, 128, strided=True),
    Case("fp4", 7, 37, 192, bias=True, fp4=True),
    Case("no_rows", 0, 40, 128),
    *_ACROSS_ROWS,
)
REFUSED = {
    "composed": {case.name for case in _ACROSS_ROWS},
    "triton": {case.name for case in CASES if case.inputs % 2},
}
"""Cases that an implementation leaves to the reference."""
BENCHMARKS = {
    "cpu": (
        Case("smollm2 gate_up 1", 1, 3072, 576),
        Case("smollm2 gate_up 32", 32, 3072, 576),
        Case("llama3_8b o 1", 1, 4096, 4096),
    ),
    "cuda": (
        Case("llama3_8b gate_up 1", 1, 28672, 4096),
        Case("llama3_8b down 1", 1, 4096, 14336),
        Case("llama3_8b gate_up 64", 64, 28672, 4096),
        Case("llama3_8b gate_up 2048", 2048, 28672, 4096),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""
COMPILED = (
    *BENCHMARKS["cuda"],
    Case("llama3_8b down 64", 64, 4096, 14336),
    Case("llama3_8b down 2048", 2048, 4096, 14336),
)
"""Launches that `kernels.tools.compile` compiles ahead of time."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    num_weights = case.outputs * case.inputs
    num_blocks = math.ceil(num_weights / case.block_size)
    # Random codes have a root mean square of 0.54, so outputs stay near one.
    absmax = (torch.rand(num_blocks, device=device) + 0.5) / (0.54 * case.inputs**0.5)
    shape = (math.ceil(num_weights / 2), 1)
    return {
        "x": case.make_x(dtype, device),
        "weight": torch.randint(256, shape, dtype=torch.uint8, device=device),
        "absmax": absmax,
        "block_size": case.block_size,
        "shape": (case.outputs, case.inputs),
        "bias": case.make_bias(dtype, device),
        "fp4": case.fp4,
    }


def work(inputs: dict[str, Any]) -> Work:
    """The work of one product; the weight is read in its packed form."""
    shape = inputs["shape"]
    return product_work(inputs, shape[0])
