"""Inputs for `selective_scan`: first chunks, continued ones, decodes, both generations of Mamba."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from kernels.shared.recurrent_cases import random_batch
from kernels.shared.tolerances import FLOATS
from kernels.shared.work import Work, num_bytes

# A row of the state is summed in another order, and exponentials differ in their last bits.
TOLERANCE = dict.fromkeys(FLOATS, 2e-5)


@dataclass(frozen=True)
class Case:
    """`rows` of each sequence; a negative number starts with no state."""

    name: str
    rows: tuple[int, ...]
    num_heads: int = 4
    head_dim: int = 16
    size: int = 16
    num_groups: int = 1
    strided: bool = False
    slow_decay: bool = False
    limited: bool = False

    @property
    def has_matrix(self) -> bool:
        """Whether `a` has a value for each element of a state, as in Mamba 1."""
        return self.head_dim == 1


CASES = (
    Case("mamba1_decode", (1,), 3072, 1),
    Case("mamba1_mixed", (1, 1, -9), 1536, 1),
    Case("mamba2_decode", (1,), 24, 64, 128),
    Case("mamba2_mixed", (1, 1, -9), 24, 64, 128),
    Case("codestral_groups", (1, -5), 16, 64, 128, 8),
    Case("falcon_h1", (1, -5), 8, 64, 256),
    Case("mixed", (1, 1, 1, -1, 5, -33, 70)),
    Case("mamba1_long", (-33, 70), 40, 1),
    Case("one_head", (1, -9), 1, 32, 64),
    Case("one_channel", (1, -9), 1, 1, 8),
    Case("odd", (-7, 4), 6, 20, 19, 3),
    Case("mamba1_odd", (-7, 4), 13, 1, 19),
    Case("mamba1_groups", (1, -5), 12, 1, 16, 3),
    Case("one_element", (-7, 4), 3, 5, 1),
    Case("strided", (1, -9, 6), strided=True),
    Case("slow_decay", (-90, 60), slow_decay=True),
    Case("limited", (-9, 6), 6, limited=True),
    Case("no_rows", ()),
)
REFUSED = {"triton": ("mamba1_groups",)}
BENCHMARKS = {
    "cpu": (
        Case("mamba_130m decode 1", (1,), 1536, 1),
        Case("mamba_130m decode 16", (1,) * 16, 1536, 1),
        Case("mamba_130m prompt 512", (-512,), 1536, 1),
        Case("mamba2_130m decode 1", (1,), 24, 64, 128),
        Case("mamba2_130m decode 16", (1,) * 16, 24, 64, 128),
        Case("mamba2_130m prompt 512", (-512,), 24, 64, 128),
    ),
    "cuda": (
        Case("falcon_mamba_7b decode 64", (1,) * 64, 8192, 1),
        Case("falcon_mamba_7b prompt 4096", (-4096,), 8192, 1),
        Case("codestral_7b decode 64", (1,) * 64, 128, 64, 128, 8),
        Case("codestral_7b prompt 4096", (-4096,), 128, 64, 128, 8),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    batch, num_slots = random_batch(case.rows, device)
    num_rows, num_heads = sum(map(abs, case.rows)), case.num_heads

    def rows(width: int, scale: float = 1.0) -> Tensor:
        stride = width + 3 if case.strided else width
        return (scale * torch.randn(num_rows, stride, device=device)).to(dtype)[:, :width]

    rates = (num_heads, case.size) if case.has_matrix else (num_heads,)
    a_log = torch.rand(rates, device=device) * 3 - (6 if case.slow_decay else 1)
    shape = (num_slots, num_heads, case.head_dim, case.size)
    return {
        "x": rows(num_heads * case.head_dim),
        "dt": rows(num_heads, 2.0),
        "b": rows(case.num_groups * case.size),
        "c": rows(case.num_groups * case.size, case.size**-0.5),
        "states": torch.randn(shape, device=device),
        "batch": batch,
        "a": -a_log.exp(),
        "d": torch.randn(num_heads, device=device),
        "dt_bias": torch.randn(num_heads, device=device),
        "dt_limits": (0.1, 0.5) if case.limited else (0.0, inf),
    }


def outputs(result: Tensor, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return result, inputs["states"]


def work(inputs: dict[str, object]) -> Work:
    """The op's memory traffic and arithmetic: each row fades, changes and reads the states."""
    x, states, batch = inputs["x"], inputs["states"], inputs["batch"]
    moved = 2 * batch.num_sequences * num_bytes(states[0])  # type: ignore
    moved += 2 * num_bytes(x) + sum(num_bytes(inputs[name]) for name in ("dt", "b", "c"))
    return Work(moved, 5 * len(x) * states[0].numel())  # type: ignore
