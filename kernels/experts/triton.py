"""Choosing, sorting and adding up on a GPU. The host takes no decisions, so steps can be recorded.

Sorting counts: a pair's place is the number of pairs of lower experts plus the number of earlier
pairs of the same expert. A program compares some pairs with all, which for the pairs of a step
takes less time than a sort of several launches.
"""

import torch
from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton
from kernels.experts.routing import Routing

PAIRS = 128
"""Pairs that a program sorts."""
OTHERS = 32
"""Pairs that a program compares them with at a time: more would not fit registers."""
SUM_BLOCK = 1024
MOST_EXPERTS = 4096
MOST_CHOSEN = 64
_COUNTS = ("num_pairs",)
"""Arguments that must not specialise kernels, so that all numbers of pairs share one."""


def supports_route(
    logits: Tensor,
    top_k: int,
    *,
    normalised: bool,
    sigmoid: bool = False,
    bias: Tensor | None = None,
    groups: tuple[int, int] | None = None,
) -> bool:
    """Supports fp32 logits on a GPU, if a row fits the registers."""
    return (
        logits.dtype == torch.float32
        and logits.stride(1) == 1
        and logits.shape[1] <= MOST_EXPERTS
        and top_k <= MOST_CHOSEN
        and _triton.runs_on(logits)
    )


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
    device = logits.device
    num_pairs = tokens * top_k
    num_groups, top_groups = groups or (1, 1)
    choice = torch.empty(num_pairs, dtype=torch.int32, device=device)
    found = Routing(
        weights=torch.empty((tokens, top_k), device=device),
        places=torch.empty((tokens, top_k), dtype=torch.int64, device=device),
        rows=torch.empty(num_pairs, dtype=torch.int64, device=device),
        starts=torch.empty(experts + 1, dtype=torch.int64, device=device),
    )
    if tokens:
        _choose_experts_kernel[(tokens,)](
            logits,
            logits.stride(0),
            bias,
            choice,
            found.weights,
            NUM_EXPERTS=experts,
            BLOCK_SIZE=triton.next_power_of_2(experts),
            TOP_K=top_k,
            CHOSEN=triton.next_power_of_2(top_k),
            NORMALISED=normalised,
            SIGMOID=sigmoid,
            NUM_GROUPS=num_groups,
            TOP_GROUPS=top_groups,
            BLOCK_GROUPS=triton.next_power_of_2(num_groups),
        )
    num_blocks = triton.cdiv(num_pairs, PAIRS)
    _sort_pairs_kernel[(num_blocks + triton.cdiv(experts + 1, PAIRS),)](
        choice,
        found.places,
        found.rows,
        found.starts,
        num_pairs,
        NUM_EXPERTS=experts,
        TOP_K=top_k,
        PAIRS=PAIRS,
        OTHERS=OTHERS,
    )
    return found


@triton.jit
def _choose_experts_kernel(
    logits_ptr,
    row_stride,
    bias_ptr,
    choice_ptr,
    weights_ptr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TOP_K: tl.constexpr,
    CHOSEN: tl.constexpr,
    NORMALISED: tl.constexpr,
    SIGMOID: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, BLOCK_SIZE)
    rank = tl.arange(0, CHOSEN)
    is_one = number < NUM_EXPERTS
    logits = tl.load(logits_ptr + token * row_stride + number, mask=is_one, other=float("-inf"))
    # NaN is chosen like the lowest number, so that the chosen experts always differ.
    keys = logits
    if bias_ptr is not None:
        keys = 1.0 / (1.0 + tl.exp(-logits)) + tl.load(bias_ptr + number, mask=is_one, other=0.0)
    keys = tl.where(keys == keys, keys, float("-inf"))
    left = is_one
    if TOP_GROUPS < NUM_GROUPS:
        group = number // (NUM_EXPERTS // NUM_GROUPS)
        group_number = tl.arange(0, BLOCK_GROUPS)
        sums = tl.full((BLOCK_GROUPS,), float("-inf"), tl.float32)
        for at in tl.static_range(NUM_GROUPS):
            inside = tl.where(is_one & (group == at), keys, float("-inf"))
            first = tl.max(inside, 0)
            if bias_ptr is not None:
                first_at = tl.min(tl.where(inside == first, number, BLOCK_SIZE), 0)
                first += tl.max(tl.where(number == first_at, float("-inf"), inside), 0)
            sums = tl.where(group_number == at, first, sums)
        closed = group_number < NUM_GROUPS
        left = is_one & (number < 0)
        for _ in tl.static_range(TOP_GROUPS):
            most = tl.max(tl.where(closed, sums, float("-inf")), 0)
            best = tl.min(tl.where(closed & (sums == most), group_number, BLOCK_GROUPS), 0)
            left = left | (is_one & (group == best))
            closed = closed & (group_number != best)
    choice = tl.zeros((CHOSEN,), tl.int32)
    chosen_logits = tl.zeros((CHOSEN,), tl.float32)
    for place in tl.static_range(TOP_K):
        most = tl.max(tl.where(left, keys, float("-inf")), 0)
        best = tl.min(tl.where(left & (keys == most), number, BLOCK_SIZE), 0)
        logit = tl.sum(tl.where(number == best, logits, 0.0), 0)
        choice = tl.where(rank == place, best, choice)
        chosen_logits = tl.where(rank == place, logit, chosen_logits)
        left = left & (number != best)
    if SIGMOID:
        weights = tl.where(rank < TOP_K, 1.0 / (1.0 + tl.exp(-chosen_logits)), 0.0)
    else:
        most = tl.max(keys, 0)
        total = tl.sum(tl.where(is_one, tl.exp(logits - most), 0.0), 0)
        weights = tl.where(rank < TOP_K, tl.exp(chosen_logits - most) / total, 0.0)
    if NORMALISED:
        # The sum of sigmoids may be 0.
        weights = weights / tl.maximum(tl.sum(weights, 0), 1e-20)
    at = token * TOP_K + rank
    tl.store(choice_ptr + at, choice, mask=rank < TOP_K)
    tl.store(weights_ptr + at, weights, mask=rank < TOP_K)


@triton.jit(do_not_specialize=_COUNTS)
def _sort_pairs_kernel(
    choice_ptr,
    places_ptr,
    rows_ptr,
    starts_ptr,
    num_pairs,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    PAIRS: tl.constexpr,
    OTHERS: tl.constexpr,
):
    num_blocks = tl.cdiv(num_pairs, PAIRS)
    # The last programs count the pairs before each expert's, the others those before each pair.
    is_pairs = tl.program_id(0) < num_blocks
    mine = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    if is_pairs:
        expert = tl.load(choice_ptr + mine, mask=mine < num_pairs, other=NUM_EXPERTS)
    else:
        mine -= num_blocks * PAIRS
        expert = mine.to(tl.int32)
    count = tl.zeros((PAIRS,), tl.int32)
    for block in range(tl.cdiv(num_pairs, OTHERS)):
        other = block * OTHERS + tl.arange(0, OTHERS)
        theirs = tl.load(choice_ptr + other, mask=other < num_pairs, other=NUM_EXPERTS)
        is_before = theirs[None, :] < expert[:, None]
        if is_pairs:
            is_before |= (theirs[None, :] == expert[:, None]) & (other[None, :] < mine[:, None])
        is_before &= (other < num_pairs)[None, :]
        count += tl.sum(is_before.to(tl.int32), 1)
    if is_pairs:
        tl.store(places_ptr + mine, count.to(tl.int64), mask=mine < num_pairs)
        tl.store(rows_ptr + count, (mine // TOP_K).to(tl.int64), mask=mine < num_pairs)
    else:
        tl.store(starts_ptr + mine, count.to(tl.int64), mask=mine <= NUM_EXPERTS)


def supports_sum(answers: Tensor, weights: Tensor, places: Tensor) -> bool:
    """Supports contiguous tensors on a GPU."""
    return answers.is_contiguous() and _triton.runs_on(answers)


def sum_experts(answers: Tensor, weights: Tensor, places: Tensor) -> Tensor:
    """See `kernels.experts`."""
    (tokens, top_k), size = places.shape, answers.shape[1]
    out = answers.new_empty(tokens, size)
    if tokens:
        _sum_experts_kernel[(tokens, triton.cdiv(size, SUM_BLOCK))](
            answers, weights, places, out, size, TOP_K=top_k, BLOCK_SIZE=SUM_BLOCK
        )
    return out


@triton.jit
def _sum_experts_kernel(
    answers_ptr,
    weights_ptr,
    places_ptr,
    out_ptr,
    size,
    TOP_K: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    total = tl.zeros((BLOCK_SIZE,), tl.float32)
    for rank in tl.static_range(TOP_K):
        place = tl.load(places_ptr + token * TOP_K + rank)
        weight = tl.load(weights_ptr + token * TOP_K + rank)
        answer = tl.load(answers_ptr + place * size + column, mask=column < size, other=0.0)
        total += answer.to(tl.float32) * weight
    at = out_ptr + token * size + column
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask=column < size)
