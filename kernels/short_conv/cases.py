"""Inputs for `short_conv`: first chunks, continued ones, decodes, other slots."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.shared.recurrent_cases import random_batch
from kernels.shared.tolerances import FLOATS
from kernels.shared.work import Work, num_bytes

# Sums of a few products in fp32, and SiLU.
TOLERANCE = dict.fromkeys(FLOATS, 1e-5)


@dataclass(frozen=True)
class Case:
    """`rows` of each sequence; a negative number starts with no state."""

    name: str
    rows: tuple[int, ...]
    size: int = 96
    width: int = 4
    has_bias: bool = False
    silu: bool = True
    strided: bool = False


CASES = (
    Case("qwen3_5_decode", (1,), 6144),
    Case("qwen3_5_batch", (1,) * 9 + (-70,), 6144),
    Case("mixed", (1, 1, 1, -1, 5, -33, 70)),
    Case("fewer_rows_than_the_state", (-1, -2, 2, 3), width=8),
    Case("lfm2", (1, -17), 1024, 3, silu=False),
    Case("bias", (-9, 4), 130, has_bias=True),
    Case("two_wide", (-9, 4), 31, 2),
    Case("one_channel", (1, -9), 1),
    Case("strided", (1, -9, 6), 64, strided=True),
    Case("no_rows", ()),
)
BENCHMARKS = {
    "cpu": (
        Case("qwen3.5_0.8b decode 1", (1,), 6144),
        Case("qwen3.5_0.8b prompt 512", (-512,), 6144),
    ),
    "cuda": (
        Case("qwen3.5_4b decode 64", (1,) * 64, 8192),
        Case("qwen3.5_4b prompt 4096", (-4096,), 8192),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    batch, num_slots = random_batch(case.rows, device)
    stride = case.size * 2 if case.strided else case.size
    num_rows = sum(map(abs, case.rows))
    bias = torch.randn(case.size, device=device) if case.has_bias else None
    return {
        "x": torch.randn(num_rows, stride, device=device).to(dtype)[:, : case.size],
        "weight": torch.randn(case.size, case.width, device=device) / case.width**0.5,
        "states": torch.randn(num_slots, case.size, case.width - 1, device=device).to(dtype),
        "batch": batch,
        "bias": bias,
        "silu": case.silu,
    }


def outputs(result: Tensor, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return result, inputs["states"]


def work(inputs: dict[str, object]) -> Work:
    """The op's memory traffic and arithmetic."""
    x, states, batch = inputs["x"], inputs["states"], inputs["batch"]
    moved = 2 * num_bytes(x) + 2 * batch.num_sequences * num_bytes(states[0])  # type: ignore
    return Work(moved, 2 * x.numel() * (states.shape[2] + 1))  # type: ignore
