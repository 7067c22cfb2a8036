"""Inputs for `linear_packed`: a small model's layers, odd sizes, many and few rows."""

from dataclasses import dataclass
from typing import Any

import torch

from kernels.linear_packed.packed_weight import PackedWeight
from kernels.shared.tolerances import FLOATS
from kernels.shared.work import Work, product_work

# Sums in fp32 of up to 1536 products of magnitude 1/√K, in another order.
TOLERANCE = dict.fromkeys(FLOATS, 2e-5)


@dataclass(frozen=True)
class Case:
    """[rows, inputs] times [outputs, inputs]."""

    name: str
    rows: int
    inputs: int
    outputs: int
    bias: bool = False
    fp32_out: bool = False
    strided: bool = False
    """Whether rows are views of wider ones."""


CASES = (
    Case("smollm2_qkv_decode", 1, 576, 960),
    Case("smollm2_gate_up_batch", 33, 576, 3072),
    Case("smollm2_down_chunk", 129, 1536, 576),
    Case("logits", 2, 576, 6160, fp32_out=True),
    Case("qwen3_down", 7, 3072, 1024),
    Case("pieces", 13, 9000, 64),
    Case("bias", 5, 64, 80, bias=True),
    Case("odd", 11, 37, 45, bias=True),
    Case("one_of_each", 1, 1, 1),
    Case("strided", 6, 96, 33, strided=True),
    Case("logits_with_bias", 3, 40, 100, bias=True, fp32_out=True),
    Case("no_rows", 0, 64, 32),
)
BENCHMARKS: dict[str, tuple[Case, ...]] = {
    "cpu": (
        Case("smollm2 gate_up 1", 1, 576, 3072),
        Case("smollm2 gate_up 32", 32, 576, 3072),
        Case("smollm2 gate_up 512", 512, 576, 3072),
        Case("smollm2 logits 32", 32, 576, 49152, fp32_out=True),
        Case("llama3_8b o 1", 1, 4096, 4096),
        *(Case(f"llama3.2_1b gate_up {rows}", rows, 2048, 16384) for rows in (1, 8, 109)),
    ),
    "cuda": (),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    weight = torch.randn(case.outputs, case.inputs).mul_(case.inputs**-0.5)
    width = case.inputs + 24 if case.strided else case.inputs
    x = torch.randn(case.rows, width).to(dtype)[:, : case.inputs]
    return {
        "x": x,
        "weight": PackedWeight.pack(weight.to(dtype)),
        "bias": torch.randn(case.outputs) if case.bias else None,
        "fp32_out": case.fp32_out,
    }


def work(inputs: dict[str, Any]) -> Work:
    """The work of one product; the weight is read with its padding."""
    return product_work(inputs, inputs["weight"].out_features)
