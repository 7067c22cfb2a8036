"""Inputs for `sum_experts`."""

from dataclasses import dataclass

import torch

from kernels.shared.tolerances import FLOATS

# The same operations in the same order.
TOLERANCE = dict.fromkeys(FLOATS, 1e-6)


@dataclass(frozen=True)
class Case:
    """`tokens` with `top_k` answers of `size` numbers."""

    name: str
    tokens: int
    top_k: int
    size: int


CASES = (
    Case("mixtral_decode", 1, 2, 4096),
    Case("qwen3_30b_batch", 33, 8, 2048),
    Case("one_answer", 19, 1, 257),
    Case("one_number", 5, 3, 1),
    Case("no_tokens", 0, 8, 64),
)
BENCHMARKS: dict[str, tuple[Case, ...]] = {
    "cpu": (
        Case("qwen3_30b decode 1", 1, 8, 2048),
        Case("qwen3_30b decode 32", 32, 8, 2048),
        Case("qwen3_30b prompt 512", 512, 8, 2048),
    ),
    "cuda": (
        Case("qwen3_30b decode 1", 1, 8, 2048),
        Case("qwen3_30b decode 64", 64, 8, 2048),
        Case("qwen3_30b prompt 2048", 2048, 8, 2048),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    pairs = case.tokens * case.top_k
    return {
        "answers": torch.randn(pairs, case.size, device=device).to(dtype),
        "weights": torch.rand(case.tokens, case.top_k, device=device),
        "places": torch.randperm(pairs, device=device).view(case.tokens, case.top_k),
    }
