"""The common inputs of gates. `make_inputs` is for language models, with the gate half first."""

from dataclasses import dataclass

import torch

from kernels.shared.tolerances import FLOATS

# An exponential and some products in fp32.
TOLERANCE = dict.fromkeys(FLOATS, 1e-5)
SLACK = {
    # PyTorch rounds the activated gate, too: up to 2^-8 and 2^-11 of the product.
    "composed": {torch.bfloat16: 4e-3, torch.float16: 5e-4},
}


@dataclass(frozen=True)
class Case:
    """`num_tokens` rows of a gate and an up half, in the op's order, with `size` elements each.
    Halves that are `apart` are two tensors."""

    name: str
    num_tokens: int
    size: int
    scale: float = 1.0
    apart: bool = False


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    gate_up = torch.randn(case.num_tokens, 2 * case.size, device=device)
    gate_up[:, : case.size] *= case.scale
    gate_up = gate_up.to(dtype)
    if not case.apart:
        return {"gate_up": gate_up}
    gate, up = gate_up.chunk(2, 1)
    return {"gate_up": gate, "up": up.contiguous()}
