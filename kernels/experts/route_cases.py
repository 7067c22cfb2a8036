"""Inputs for `route_experts`: few and many experts, equal logits, one token or none."""

from dataclasses import dataclass

import torch

from kernels.experts.routing import Routing
from kernels.shared.tolerances import FLOATS

TESTED_DTYPES = (torch.float32,)
"""The dtypes of models to test; inputs are the same for others."""
# An exponential and sums of up to 512 of them in another order; weights are below 1.
TOLERANCE = dict.fromkeys(FLOATS, 2e-6)


@dataclass(frozen=True)
class Case:
    """`tokens` that choose `top_k` of `experts`."""

    name: str
    tokens: int
    experts: int
    top_k: int
    normalised: bool = True
    levels: int | None = None
    """The number of different logits, so that most are equal to others."""
    strided: bool = False
    sigmoid: bool = False
    biases: int = 0
    """The number of different biases, multiples of a quarter: with `levels`, which a case with
    biases needs, sums of different experts then differ clearly or not at all. Experts of a group
    have the same one, so that this is also true of sums of two."""
    groups: tuple[int, int] | None = None


CASES = (
    Case("mixtral_decode", 1, 8, 2),
    Case("qwen3_30b_decode", 1, 128, 8),
    Case("qwen3_30b_chunk", 260, 128, 8),
    Case("shares_of_all", 33, 60, 4, normalised=False),
    Case("equal", 50, 9, 3, levels=2),
    Case("all_equal", 5, 16, 16, levels=1),
    Case("one_expert", 7, 1, 1),
    Case("strided", 6, 24, 5, strided=True),
    Case("no_tokens", 0, 8, 2),
    Case("llama4", 40, 16, 1, normalised=False, sigmoid=True),
    Case("sigmoids", 33, 60, 4, sigmoid=True),
    Case("lfm2_moe", 50, 32, 4, levels=4, sigmoid=True, biases=3),
    Case("deepseek_v2", 40, 160, 6, normalised=False, groups=(8, 3)),
    Case("equal_groups", 50, 12, 3, levels=2, groups=(4, 2)),
    Case("deepseek_v3", 30, 256, 8, levels=4, sigmoid=True, biases=3, groups=(8, 4)),
    Case("groups_of_two", 40, 10, 4, levels=4, sigmoid=True, biases=2, groups=(5, 3)),
    Case("all_groups", 7, 12, 3, levels=4, sigmoid=True, biases=2, groups=(2, 2)),
    Case("biases", 9, 64, 6, levels=4, normalised=False, sigmoid=True, biases=5),
)
BENCHMARKS: dict[str, tuple[Case, ...]] = {
    "cpu": (
        Case("qwen3_30b decode 1", 1, 128, 8),
        Case("qwen3_30b decode 32", 32, 128, 8),
        Case("qwen3_30b prompt 512", 512, 128, 8),
    ),
    "cuda": (
        Case("qwen3_30b decode 1", 1, 128, 8),
        Case("qwen3_30b decode 64", 64, 128, 8),
        Case("qwen3_30b prompt 2048", 2048, 128, 8),
        Case("deepseek_v3 decode 64", 64, 256, 8, True, 4, sigmoid=True, biases=3, groups=(8, 4)),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op; logits are fp32 whatever the model's dtype."""
    width = case.experts * 2 if case.strided else case.experts
    logits = torch.randn(case.tokens, width, device=device)
    if case.levels is not None:
        logits = torch.randint(case.levels, logits.shape, device=device).float()
    apart = case.experts if case.groups is None else case.groups[0]
    biases = torch.randint(max(case.biases, 1), (apart,), device=device) / 4
    biases = biases.repeat_interleave(case.experts // apart)
    return {
        "logits": logits[:, : case.experts],
        "top_k": case.top_k,
        "normalised": case.normalised,
        "sigmoid": case.sigmoid,
        "bias": biases if case.biases else None,
        "groups": case.groups,
    }


def outputs(result: Routing, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return (result.weights, result.places, result.rows, result.starts)
