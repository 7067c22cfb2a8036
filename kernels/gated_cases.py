"""What the inputs of gates share. `make_inputs` is the language models': the gate half first."""

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
    """`num_tokens` rows of a gate and an up half, in the op's order, with `size` elements each."""

    name: str
    num_tokens: int
    size: int
    scale: float = 1.0


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    gate_up = torch.randn(case.num_tokens, 2 * case.size, device=device)
    gate_up[:, : case.size] *= case.scale
    return {"gate_up": gate_up.to(dtype)}


def outputs(result: Tensor, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return (result,)
