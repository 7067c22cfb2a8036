"""Inputs for `rope_inplace`: query and key heads as views of packed q, k, v."""

from dataclasses import dataclass

import torch

TOLERANCE = {
    torch.float32: 1e-5,
    # One rounding of values up to 8.
    torch.bfloat16: 3.2e-2,
    torch.float16: 4e-3,
}


@dataclass(frozen=True)
class Case:
    """`num_tokens` rows of `num_heads` heads, followed by `tail` elements that are not rotated."""

    name: str
    num_tokens: int
    num_heads: int
    head_dim: int
    tail: int = 0


CASES = (
    Case("smollm2_decode", 1, 12, 64, tail=192),
    Case("llama_chunk", 257, 40, 128, tail=1024),
    Case("contiguous", 63, 3, 32),
    Case("smallest", 5, 1, 2),
    Case("odd_half", 7, 2, 6, tail=3),
    Case("no_tokens", 0, 4, 16),
)


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    width = case.num_heads * case.head_dim
    packed = torch.randn(case.num_tokens, width + case.tail, device=device).to(dtype)
    angles = torch.rand(case.num_tokens, 1, case.head_dim // 2, device=device) * 6.3
    return {
        "x": packed[:, :width].view(case.num_tokens, case.num_heads, case.head_dim),
        "cos": torch.cat((angles.cos(), angles.cos()), -1),
        "sin": torch.cat((-angles.sin(), angles.sin()), -1),
    }


def outputs(result: None, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote, and the neighbours that it must not touch."""
    x = inputs["x"]
    assert isinstance(x, torch.Tensor)
    return (x, x if x._base is None else x._base)
