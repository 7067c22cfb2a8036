"""Mixtures of experts: the routing of rows to experts, products with each expert's weights, and the
sum of the results."""

from torch import Tensor

from kernels import _triton
from kernels.experts import cpu, linear_cases, reference, route_cases, sum_cases
from kernels.experts.expert_weights import ExpertWeights, GgufRows
from kernels.experts.routing import Routing
from kernels.registry import op

__all__ = [
    "ExpertWeights",
    "GgufRows",
    "Routing",
    "linear_experts",
    "route_experts",
    "sum_experts",
]


@op(route_cases)
def route_experts(logits: Tensor, top_k: int, *, normalised: bool) -> Routing:
    """Choose each token's experts and sort the pairs by expert.

    A token's weights are the softmax of its logits at the `top_k` largest; of equal ones the first
    is chosen first.

    Args:
        logits: [T, E] fp32, rows may be strided; E experts of which each token gets `top_k`.
        normalised: whether the chosen experts' weights are scaled to the sum of 1.

    Returns:
        See `Routing`. A token's choice and weights depend on its logits alone.

    Paper: Shazeer et al. 2017, arXiv:1701.06538.
    """
    return reference.route_experts(logits, top_k, normalised=normalised)


@op(linear_cases)
def linear_experts(
    x: Tensor,
    weights: ExpertWeights,
    starts: Tensor,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> Tensor:
    """Multiply rows that are sorted by expert, each by the weight of its expert.

    Args:
        x: [T, K], fp32, bf16 or fp16; rows may be strided.
        weights: the weights of E experts, [N, K] each.
        starts: [E + 1] int64: rows starts[e] ... starts[e + 1] - 1 of the result belong to expert
            e; the first is 0, the last the number of rows.
        rows: [R] int64: the row of x for each row of the result; None: row by row.
        bias: [E, N] fp32, contiguous, added to the sums.
        int8_activations: see `linear_panels`; for panels of GGUF's types.

    Returns:
        [R, N], contiguous, x's dtype. A row has the bits of the product for this form of weights
            (`linear_packed`, `linear_panels`, on a GPU `linear_gguf`) for the row alone; with plain
            weights on a GPU it depends on the row and the weight alone.
    """
    return reference.linear_experts(
        x, weights, starts, rows, bias, int8_activations=int8_activations
    )


@op(sum_cases)
def sum_experts(answers: Tensor, weights: Tensor, places: Tensor) -> Tensor:
    """Add up the chosen experts' results for each token, the first choice first.

    Args:
        answers: [T·k, C], sorted by expert; any float dtype, contiguous.
        weights: [T, k] fp32.
        places: [T, k] int64: the rows of each token's answers.

    Returns:
        [T, C], contiguous, the answers' dtype; products and sums are rounded to fp32 one by one.
    """
    return reference.sum_experts(answers, weights, places)


route_experts.implementation("cpu", supports=cpu.supports_route)(cpu.route_experts)
linear_experts.implementation("cpu", supports=cpu.supports_linear)(cpu.linear_experts)
sum_experts.implementation("cpu", supports=cpu.supports_sum)(cpu.sum_experts)
if _triton.AVAILABLE:
    from kernels.experts import triton, triton_linear

    route_experts.implementation("triton", supports=triton.supports_route)(triton.route_experts)
    linear_experts.implementation("triton", supports=triton_linear.supports)(
        triton_linear.linear_experts
    )
    sum_experts.implementation("triton", supports=triton.supports_sum)(triton.sum_experts)
