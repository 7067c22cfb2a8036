"""The definitions, in fp32."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.experts.expert_weights import ExpertWeights
from kernels.experts.routing import Routing
from kernels.linear_panels.panels import BLOCK
from kernels.shared.int8_activations import round_to_int8


def route_experts(
    logits: Tensor,
    top_k: int,
    *,
    normalised: bool,
    sigmoid: bool = False,
    bias: Tensor | None = None,
    groups: tuple[int, int] | None = None,
) -> Routing:
    """Choose each token's experts and sort the pairs by expert.

    A token's weights are the softmax of its logits, or the sigmoid of each, at the `top_k` largest;
    of equal ones the first is chosen first.

    Args:
        logits: [T, E] fp32, rows may be strided; E experts of which each token gets `top_k`.
        normalised: whether the chosen experts' weights are scaled to the sum of 1.
        sigmoid: whether weights are sigmoids.
        bias: [E] fp32, contiguous; with it, which needs `sigmoid`, the largest sums of sigmoid and
            bias are chosen. Weights do not contain it.
        groups: (G, g): the experts form G equal groups of neighbours, and each token gets experts
            of the best g only, which have at least `top_k`. A group is as good as its largest
            logit, or with a bias as its two largest sums together; of equal groups the first is
            better. None: all experts are one group.

    Returns:
        See `Routing`. A token's choice and weights depend on its logits alone.

    Papers: Shazeer et al. 2017, arXiv:1701.06538; the bias: Wang et al. 2024, arXiv:2408.15664;
    groups: DeepSeek-AI 2024, arXiv:2405.04434 and arXiv:2412.19437.
    """
    keys = logits if bias is None else logits.sigmoid() + bias
    if groups is not None:
        keys = _in_groups(keys, groups, 1 if bias is None else 2)
    choice = keys.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = (logits.sigmoid() if sigmoid else logits.softmax(-1)).gather(1, choice)
    if normalised:
        # The sum of sigmoids may be 0.
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20)
    return Routing.of(choice, weights, logits.shape[1])


def _in_groups(keys: Tensor, groups: tuple[int, int], counted: int) -> Tensor:
    """Return the keys with those outside a token's groups lowered to -∞. A group is as good as the
    sum of its `counted` largest keys."""
    by_group = keys.reshape(len(keys), groups[0], keys.shape[1] // groups[0])
    sums = by_group.topk(counted).values.sum(-1)
    others = sums.sort(dim=-1, descending=True, stable=True).indices[:, groups[1] :]
    others = others[:, :, None].expand(-1, -1, by_group.shape[2])
    return by_group.scatter(1, others, -torch.inf).flatten(1)


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
    y = x.float() if rows is None else x[rows].float()
    dtype = x.dtype
    if int8_activations:
        codes, scale = round_to_int8(y, BLOCK)
        y, dtype = (codes * scale).view(y.shape), torch.float32
    out = y.new_empty(len(y), weights.out_features)
    for expert, (first, last) in enumerate(itertools.pairwise(starts.tolist())):
        if first < last:
            of_expert = None if bias is None else bias[expert]
            out[first:last] = F.linear(y[first:last], weights.plain(expert, dtype), of_expert)
    return out.to(x.dtype)


def sum_experts(answers: Tensor, weights: Tensor, places: Tensor) -> Tensor:
    """Add up the chosen experts' results for each token, the first choice first.

    Args:
        answers: [T·k, C], sorted by expert; any float dtype, contiguous.
        weights: [T, k] fp32.
        places: [T, k] int64: the rows of each token's answers.

    Returns:
        [T, C], contiguous, the answers' dtype; products and sums are rounded to fp32 one by one.
    """
    total = answers[places[:, 0]].float() * weights[:, :1]
    for rank in range(1, places.shape[1]):
        total += answers[places[:, rank]].float() * weights[:, rank : rank + 1]
    return total.to(answers.dtype)
