"""Inputs for `gelu_mul`."""

from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = {
    torch.float32: 1e-5,
    # The gate may be rounded before the product, which reaches 16.
    torch.bfloat16: 1.3e-1,
    torch.float16: 1.6e-2,
}


@dataclass(frozen=True)
class Case:
    """`num_tokens` rows of a gate and an up half with `size` elements each."""

    name: str
    num_tokens: int
    size: int
    scale: float = 1.0


CASES = (
    Case("gemma3_270m_decode", 1, 2048),
    Case("gemma3_1b_batch", 33, 6912),
    Case("odd", 63, 257),
    Case("one_element", 3, 1),
    Case("no_tokens", 0, 64),
    Case("saturated", 4, 64, scale=50.0),
)
BENCHMARKS = {
    "cpu": (
        Case("gemma3_270m decode 1", 1, 2048),
        Case("gemma3_270m decode 32", 32, 2048),
        Case("gemma3_1b prompt 512", 512, 6912),
    ),
    "cuda": (
        Case("gemma3_1b decode 1", 1, 6912),
        Case("gemma3_1b decode 64", 64, 6912),
        Case("gemma3_1b prompt 4096", 4096, 6912),
    ),
}
"""Shapes of real models by type of device; `kernels.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    gate_up = torch.randn(case.num_tokens, 2 * case.size, device=device)
    gate_up[:, : case.size] *= case.scale
    return {"gate_up": gate_up.to(dtype)}


def outputs(result: Tensor, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return (result,)
