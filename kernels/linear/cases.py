"""Inputs for `linear`: layers of small models, odd sizes, few and many rows."""

from dataclasses import dataclass
from typing import Any

import torch

from kernels.shared.tolerances import FLOATS, ROUNDED_SUMS
from kernels.shared.work import Work, product_work

# Sums in fp32 of up to 3072 products of magnitude 1/√K, in another order.
TOLERANCE = dict.fromkeys(FLOATS, 2e-5)
SLACK = {
    # PyTorch rounds before it adds a bias in fp32, at up to 8.
    "composed": ROUNDED_SUMS,
}


@dataclass(frozen=True)
class Case:
    """[rows, inputs] times [outputs, inputs]."""

    name: str
    rows: int
    inputs: int
    outputs: int
    bias: bool = False
    fp32_bias: bool = False
    fp32_out: bool = False
    invariant: bool = False
    strided: bool = False
    """Whether rows are views of wider ones."""


SIZES = (
    Case("smollm2_qkv_decode", 1, 576, 960),
    Case("qwen3_down", 7, 3072, 256),
    Case("many_rows_in_parts", 67, 1024, 192, bias=True),
    Case("logits", 2, 576, 1111, fp32_out=True),
    Case("odd", 11, 37, 45, bias=True, fp32_bias=True),
    Case("odd_many_rows", 131, 301, 45, fp32_out=True),
    Case("one_of_each", 1, 1, 1),
    Case("strided", 6, 96, 33, strided=True),
    Case("no_rows", 0, 64, 32),
)
CASES = SIZES + tuple(
    Case(**{**case.__dict__, "name": f"invariant_{case.name}", "invariant": True}) for case in SIZES
)
REFUSED = {
    "composed": tuple(case.name for case in CASES if case.invariant or case.fp32_out),
    "triton": tuple(case.name for case in CASES if not case.invariant),
}
BENCHMARKS: dict[str, tuple[Case, ...]] = {
    "cpu": (
        Case("smollm2 gate_up 1", 1, 576, 3072),
        Case("smollm2 gate_up 32", 32, 576, 3072),
        Case("llama3_8b o 1", 1, 4096, 4096),
    ),
    "cuda": tuple(
        Case(f"llama3_8b {layer} {rows} {kind}", rows, inputs, outputs, invariant=bool(kind))
        for layer, inputs, outputs in (("o", 4096, 4096), ("gate_up", 4096, 28672))
        for rows in (1, 64, 2048)
        for kind in ("", "invariant")
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""
COMPILED = (
    *(case for case in BENCHMARKS["cuda"] if case.invariant),
    Case("llama3_8b prompt logits", 128, 4096, 128256, fp32_out=True, invariant=True),
)
"""Launches that `kernels.tools.compile` compiles ahead of time."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    weight = torch.randn(case.outputs, case.inputs, device=device).mul_(case.inputs**-0.5)
    width = case.inputs + 24 if case.strided else case.inputs
    bias = torch.randn(case.outputs, device=device) if case.bias else None
    return {
        "x": torch.randn(case.rows, width, device=device).to(dtype)[:, : case.inputs],
        "weight": weight.to(dtype),
        "bias": bias if bias is None or case.fp32_bias else bias.to(dtype),
        "fp32_out": case.fp32_out,
        "invariant": case.invariant,
    }


def work(inputs: dict[str, Any]) -> Work:
    """The work: x, weight and bias are read, y is written; two operations per product."""
    return product_work(inputs, len(inputs["weight"]))
