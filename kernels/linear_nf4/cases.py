"""Inputs for `linear_nf4`: model shapes, block sizes, blocks across rows, odd sizes."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.shared.work import Work, product_work

TOLERANCE = {
    # Sums in fp32 of up to 14336 products in another order.
    torch.float32: 2e-5,
    # Weights are rounded to x's type before they are multiplied, by up to 2^-8 and 2^-11 of each.
    # Rounding errors are random: an output near one is off by a thousandth, by ten at worst among
    # ten thousand.
    torch.bfloat16: 1.6e-2,
    torch.float16: 2e-3,
}
SLACK = {
    # PyTorch rounds before it adds the bias, at up to 8.
    "composed": {torch.bfloat16: 1.6e-2, torch.float16: 2e-3},
}


@dataclass(frozen=True)
class Case:
    """`rows` times a [`outputs`, `inputs`] weight."""

    name: str
    rows: int
    outputs: int
    inputs: int
    block_size: int = 64
    bias: bool = False
    strided: bool = False
    """Whether rows of x are views of wider ones."""
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
    width = case.inputs * 2 if case.strided else case.inputs
    x = torch.randn(case.rows, width, device=device).to(dtype)[:, : case.inputs]
    num_weights = case.outputs * case.inputs
    num_blocks = math.ceil(num_weights / case.block_size)
    # Random codes have a root mean square of 0.54, so outputs stay near one.
    absmax = (torch.rand(num_blocks, device=device) + 0.5) / (0.54 * case.inputs**0.5)
    shape = (math.ceil(num_weights / 2), 1)
    return {
        "x": x,
        "weight": torch.randint(256, shape, dtype=torch.uint8, device=device),
        "absmax": absmax,
        "block_size": case.block_size,
        "shape": (case.outputs, case.inputs),
        "bias": torch.randn(case.outputs, device=device).to(dtype) if case.bias else None,
        "fp4": case.fp4,
    }


def outputs(result: Tensor, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return (result,)


def work(inputs: dict[str, Any]) -> Work:
    """The work of one product; the weight is read in its packed form."""
    shape = inputs["shape"]
    return product_work(inputs, shape[0])
