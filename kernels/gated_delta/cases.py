"""Inputs for `gated_delta`: first chunks, continued ones, decodes, odd sizes of heads."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.shared.recurrent_cases import random_batch
from kernels.shared.tolerances import FLOATS
from kernels.shared.work import Work, num_bytes

# Products of states are summed in another order, row after row.
TOLERANCE = dict.fromkeys(FLOATS, 2e-5)


@dataclass(frozen=True)
class Case:
    """`rows` of each sequence; a negative number starts with no state."""

    name: str
    rows: tuple[int, ...]
    num_k_heads: int = 2
    num_v_heads: int = 4
    k_dim: int = 16
    v_dim: int = 16
    strided: bool = False
    slow_decay: bool = False
    decays_of_rows: bool = False


CASES = (
    Case("qwen3_5_decode", (1,), 16, 16, 128, 128),
    Case("qwen3_5_mixed", (1, 1, -9), 4, 8, 128, 128),
    Case("mixed", (1, 1, 1, -1, 5, -33, 70)),
    Case("grouped", (1, -9), 2, 8),
    Case("one_head", (1, -9), 1, 1, 32, 64),
    Case("odd", (-7, 4), 1, 3, 24, 20),
    Case("one_value", (-7, 4), 1, 1, 8, 1),
    Case("strided", (1, -9, 6), strided=True),
    Case("slow_decay", (-90, 60), slow_decay=True),
    Case("no_rows", ()),
    Case("kimi", (1, 1, -9), 4, 4, 128, 128, decays_of_rows=True),
    Case("odd_decays", (-7, 4), 1, 3, 24, 20, strided=True, decays_of_rows=True),
)
BENCHMARKS = {
    "cpu": (
        Case("qwen3.5_0.8b decode 1", (1,), 16, 16, 128, 128),
        Case("qwen3.5_0.8b decode 16", (1,) * 16, 16, 16, 128, 128),
        Case("qwen3.5_0.8b prompt 512", (-512,), 16, 16, 128, 128),
    ),
    "cuda": (
        Case("qwen3.5_4b decode 64", (1,) * 64, 16, 32, 128, 128),
        Case("qwen3.5_4b prompt 4096", (-4096,), 16, 32, 128, 128),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    batch, num_slots = random_batch(case.rows, device)
    size = 2 * case.num_k_heads * case.k_dim + case.num_v_heads * case.v_dim
    num_rows, stride = sum(map(abs, case.rows)), size * 2 if case.strided else size
    num_decays = case.num_v_heads * (case.k_dim if case.decays_of_rows else 1)
    num_gates, gap = case.num_v_heads + num_decays, 3 if case.strided else 0
    gates = 2 * torch.randn(num_rows, num_gates + gap, device=device)
    a_log = torch.rand(case.num_v_heads, device=device) * 3 - (6 if case.slow_decay else 1)
    return {
        "qkv": torch.randn(num_rows, stride, device=device).to(dtype)[:, :size],
        "gates": gates.to(dtype)[:, :num_gates],
        "states": torch.randn(num_slots, case.num_v_heads, case.k_dim, case.v_dim, device=device),
        "batch": batch,
        "a_log": a_log,
        "dt_bias": torch.randn(num_decays, device=device),
        "num_k_heads": case.num_k_heads,
    }


def outputs(result: Tensor, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return result, inputs["states"]


def work(inputs: dict[str, object]) -> Work:
    """The op's memory traffic and arithmetic: four products with each state per row."""
    qkv, states, batch = inputs["qkv"], inputs["states"], inputs["batch"]
    moved = 2 * num_bytes(qkv) + 2 * batch.num_sequences * num_bytes(states[0])  # type: ignore
    return Work(moved, 8 * len(qkv) * states[0].numel())  # type: ignore
