"""The definitions, in fp32."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.experts.expert_weights import ExpertWeights
from kernels.experts.routing import Routing
from kernels.linear_panels.panels import BLOCK
from kernels.shared.int8_activations import round_to_int8


def route_experts(logits: Tensor, top_k: int, *, normalised: bool) -> Routing:
    """See `kernels.experts`."""
    choice = logits.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = logits.softmax(-1).gather(1, choice)
    if normalised:
        weights = weights / weights.sum(-1, keepdim=True)
    return Routing.of(choice, weights, logits.shape[1])


def linear_experts(
    x: Tensor,
    weights: ExpertWeights,
    starts: Tensor,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> Tensor:
    """See `kernels.experts`."""
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
    """See `kernels.experts`."""
    total = answers[places[:, 0]].float() * weights[:, :1]
    for rank in range(1, places.shape[1]):
        total += answers[places[:, rank]].float() * weights[:, rank : rank + 1]
    return total.to(answers.dtype)
