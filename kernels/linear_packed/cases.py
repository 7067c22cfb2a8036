"""Inputs for `linear_packed`: a small model's layers, odd sizes, many and few rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.linear_packed.packed_weight import PackedWeight

TOLERANCE = {
    # Sums of up to 1536 products of magnitude 1/√K, in another order.
    torch.float32: 2e-5,
    # One rounding of results up to 8.
    torch.bfloat16: 2e-2,
    torch.float16: 3e-3,
}


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
    """Rows are views of wider ones."""


CASES = (
    Case("smollm2_qkv_decode", 1, 576, 960),
    Case("smollm2_gate_up_batch", 33, 576, 3072),
    Case("smollm2_down_chunk", 129, 1536, 576),
    Case("smollm2_logits", 2, 576, 49152, fp32_out=True),
    Case("qwen3_down", 7, 3072, 1024),
    Case("pieces", 13, 9000, 64),
    Case("bias", 5, 64, 80, bias=True),
    Case("odd", 11, 37, 45, bias=True),
    Case("one_of_each", 1, 1, 1),
    Case("strided", 6, 96, 33, strided=True),
    Case("logits_with_bias", 3, 40, 100, bias=True, fp32_out=True),
    Case("no_rows", 0, 64, 32),
)


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


def outputs(result: Tensor, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return (result,)
