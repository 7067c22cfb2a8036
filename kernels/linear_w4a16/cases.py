"""Inputs for `linear_w4a16`: model shapes, group sizes, act-order, symmetric, odd sizes."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.shared.linear_cases import LinearCase
from kernels.shared.tolerances import ROUNDED_SUMS, ROUNDED_WEIGHTS
from kernels.shared.work import Work, product_work

TOLERANCE = ROUNDED_WEIGHTS
SLACK = {"composed": ROUNDED_SUMS}


@dataclass(frozen=True)
class Case(LinearCase):
    """A product with a weight of 4-bit integers in groups."""

    group_size: int = 128
    symmetric: bool = False
    act_order: bool = False


CASES = (
    Case("llama3_down", 1, 31, 14336),
    Case("llama3_batch", 19, 72, 1024, bias=True),
    Case("smollm2_o", 2, 576, 576, group_size=64),
    Case("symmetric", 5, 136, 384, symmetric=True),
    Case("symmetric_act_order", 5, 72, 384, symmetric=True, act_order=True),
    Case("act_order", 3, 72, 512, act_order=True, bias=True),
    Case("act_order_small_groups", 17, 40, 256, group_size=32, act_order=True),
    Case("groups_of_32", 3, 72, 320, group_size=32),
    Case("one_group", 3, 40, 264, group_size=264),
    Case("last_group_is_short", 3, 40, 328, group_size=128),
    Case("odd_outputs", 7, 37, 128, bias=True),
    Case("many_rows", 129, 130, 256),
    Case("smallest", 1, 1, 8, group_size=8),
    Case("strided", 17, 40, 128, strided=True),
    Case("no_rows", 0, 40, 128),
)
BENCHMARKS = {
    "cpu": (
        Case("smollm2 gate_up 1", 1, 3072, 576, group_size=64),
        Case("smollm2 gate_up 32", 32, 3072, 576, group_size=64),
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
    Case("llama3_8b down 1, groups of 32", 1, 4096, 14336, group_size=32),
    Case("llama3_8b down 1, symmetric", 1, 4096, 14336, symmetric=True),
    Case("llama3_8b down 1, act-order", 1, 4096, 14336, act_order=True),
    Case("llama3_8b down 2048, act-order", 2048, 4096, 14336, act_order=True),
)
"""Launches that `kernels.tools.compile` compiles ahead of time."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    num_groups = math.ceil(case.inputs / case.group_size)
    groups = (num_groups, case.outputs)
    # q - zero has a root mean square of 6.5, so outputs stay near one.
    scales = (torch.rand(groups, device=device) + 0.5) / (6.5 * case.inputs**0.5)
    g_idx = torch.arange(case.inputs, dtype=torch.int32, device=device) // case.group_size
    shape = (case.inputs // 8, case.outputs)
    return {
        "x": case.make_x(dtype, device),
        "qweight": torch.randint(-(1 << 31), 1 << 31, shape, device=device).to(torch.int32),
        "scales": scales.to(torch.float16 if dtype is torch.float32 else dtype),
        "zeros": None if case.symmetric else _zeros(groups, device),
        "group_size": case.group_size,
        "g_idx": g_idx[torch.randperm(case.inputs, device=device)] if case.act_order else None,
        "bias": case.make_bias(dtype, device),
    }


def _zeros(shape: tuple[int, int], device: torch.device) -> Tensor:
    return torch.randint(16, shape, dtype=torch.uint8, device=device)


def work(inputs: dict[str, Any]) -> Work:
    """The work of one product; the weight is read in its packed form."""
    weight = inputs["qweight"]
    return product_work(inputs, weight.shape[1])
