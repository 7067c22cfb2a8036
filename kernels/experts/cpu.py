"""Experts in C++: threads take whole experts, or share each expert if threads are more numerous."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import native
from kernels.experts.expert_weights import ExpertWeights
from kernels.experts.routing import Routing
from kernels.linear_packed import PackedWeight
from kernels.linear_panels.panels import BLOCK, Panels

_SIGNATURES = {
    "tandem_route_experts": "piiiiiipiipppp",
    "tandem_linear_experts_packed": "ipippppiiip",
    "tandem_linear_experts_panels": "ipippppiiiiiiiiiipi",
    "tandem_sum_experts": "ipppiiip",
}


def supports_route(
    logits: Tensor,
    top_k: int,
    *,
    normalised: bool,
    sigmoid: bool = False,
    bias: Tensor | None = None,
    groups: tuple[int, int] | None = None,
) -> bool:
    """Supports fp32 logits on a CPU."""
    return logits.dtype == torch.float32 and logits.stride(1) == 1 and native.runs_on(logits)


def route_experts(
    logits: Tensor,
    top_k: int,
    *,
    normalised: bool,
    sigmoid: bool = False,
    bias: Tensor | None = None,
    groups: tuple[int, int] | None = None,
) -> Routing:
    """See `kernels.experts`."""
    tokens, experts = logits.shape
    found = Routing(
        weights=torch.empty((tokens, top_k)),
        places=torch.empty((tokens, top_k), dtype=torch.int64),
        rows=torch.empty(tokens * top_k, dtype=torch.int64),
        starts=torch.empty(experts + 1, dtype=torch.int64),
    )
    _function("tandem_route_experts")(
        logits.data_ptr(),
        logits.stride(0),
        tokens,
        experts,
        top_k,
        normalised,
        sigmoid,
        None if bias is None else bias.data_ptr(),
        *(groups or (1, 1)),
        found.weights.data_ptr(),
        found.places.data_ptr(),
        found.rows.data_ptr(),
        found.starts.data_ptr(),
    )
    return found


def supports_linear(
    x: Tensor,
    weights: ExpertWeights,
    starts: Tensor,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> bool:
    """Supports CPU tensors with contiguous elements in rows of x."""
    first = weights.of[0]
    if isinstance(first, PackedWeight):
        fits = first.dtype == x.dtype and not int8_activations
    elif isinstance(first, Panels):
        fits = not int8_activations or first.format.takes_int8_activations
    else:
        fits = False
    return fits and x.stride(1) == 1 and native.runs_on(x)


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
    first = weights.of[0]
    assert isinstance(first, PackedWeight | Panels)
    if isinstance(first, PackedWeight) and first.padded_inputs != first.in_features:
        x = F.pad(x, (0, first.padded_inputs - first.in_features))
    num_rows = x.shape[0] if rows is None else rows.shape[0]
    out = torch.empty((num_rows, first.out_features), dtype=x.dtype)
    given = (
        native.DTYPES[x.dtype],
        x.data_ptr(),
        x.stride(0),
        None if rows is None else rows.data_ptr(),
        starts.data_ptr(),
        weights.addresses.ctypes.data,
        None if bias is None else bias.data_ptr(),
        len(weights.of),
    )
    if isinstance(first, PackedWeight):
        sizes = (first.padded_inputs, first.out_features, out.data_ptr())
        _function("tandem_linear_experts_packed")(*given, *sizes)
        return out
    form = first.format
    _function("tandem_linear_experts_panels")(
        *given,
        first.in_features // BLOCK,
        form.bits,
        form.group,
        form.scale_type,
        form.has_min,
        form.offset,
        form.meaning,
        int8_activations,
        first.out_features,
        out.data_ptr(),
        out.element_size(),
    )
    return out


def supports_sum(answers: Tensor, weights: Tensor, places: Tensor) -> bool:
    """Supports contiguous tensors on a CPU."""
    return answers.is_contiguous() and native.runs_on(answers)


def sum_experts(answers: Tensor, weights: Tensor, places: Tensor) -> Tensor:
    """See `kernels.experts`."""
    (tokens, top_k), size = places.shape, answers.shape[1]
    out = torch.empty((tokens, size), dtype=answers.dtype)
    _function("tandem_sum_experts")(
        native.DTYPES[answers.dtype],
        answers.data_ptr(),
        weights.data_ptr(),
        places.data_ptr(),
        tokens,
        top_k,
        size,
        out.data_ptr(),
    )
    return out


@functools.cache
def _function(name: str) -> native.Function:
    return native.function(name, _SIGNATURES[name])
