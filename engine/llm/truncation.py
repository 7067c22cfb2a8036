"""How heavy each token is, which of them stay, and the draw.

Probabilities are integers: `floor(exp((x - max) / temperature) * unit)`, the likeliest token's
being `unit`. Sums of integers do not depend on the order of addition, so neither batch size,
chunking, thread count nor device kernel can move a threshold or a draw: a row's token is a function
of its logits, its parameters and its random number. `unit` is 2**62 over a power of two above the
vocabulary size (2**46 for 49 152 tokens), so totals fit an int64; a token below `1 / unit` of the
likeliest has weight 0 and is never drawn.

Steps, each on what the one before left (`SamplingParams` documents the order):

    top_k      the first k tokens of the order in `engine.llm.ranking`
    top_p      the shortest prefix of the order with at least p of the mass (Holtzman et al. 2020,
               arXiv:1904.09751)
    min_p      tokens with at least min_p of the likeliest token's probability (Nguyen et al. 2024,
               arXiv:2407.01082)
    typical_p  tokens with information closest to the entropy, up to mass p; ties of the last one
               stay (Meister et al. 2023, arXiv:2202.00666, as in transformers' warper)

Every step keeps at least the likeliest token (typical_p: the most typical one).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.llm.ranking import order_keys, top_ids
from engine.types import SamplingParams

DRAW_BLOCK = 256
"""Columns that `draw` skips at once; a wide table of weights should be a multiple of it."""
_NUM_BINS = 2048
"""Resolution of the histogram in `last_key`: few columns share the bin that is then sorted."""


@dataclass(slots=True)
class Knobs:
    """Parameters of some rows as columns, [R, 1] each."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    @classmethod
    def of(cls, params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> "Knobs":
        def column(values: list[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)

        return cls(
            temperature=column([p.temperature for p in params], torch.float32),
            top_k=column([top_k_limit(p, vocab_size) for p in params], torch.int64),
            top_p=column([p.top_p for p in params], torch.float64),
            min_p=column([p.min_p for p in params], torch.float64),
        )


def top_k_limit(params: SamplingParams, vocab_size: int) -> int:
    """Number of tokens that top_k leaves."""
    return min(params.top_k, vocab_size) if params.top_k > 0 else vocab_size


def weight_unit(vocab_size: int) -> int:
    """Weight of the likeliest token."""
    return 1 << (62 - vocab_size.bit_length())


def scaled_weights(differences: Tensor, temperature: Tensor, unit: int) -> Tensor:
    """Weights before they are cut to integers.

    Args:
        differences: [R, C] fp32, logits minus the row's maximum. Mutated.
        temperature: [R, 1] fp32, positive.

    Returns:
        `differences`, now 0 .. `unit`.
    """
    return differences.div_(temperature).exp_().mul_(unit)


def keep_likely(weights: Tensor, min_p: Tensor, unit: int) -> Tensor:
    """Zero the weights below `min_p` [R, 1] of the likeliest token's, in place."""
    return weights.masked_fill_(weights < (min_p * unit).to(torch.int64), 0)


def keep_nucleus(weights: Tensor, totals: Tensor, top_p: Tensor) -> Tensor:
    """Zero what follows the shortest prefix that holds `top_p` of the mass, in place.

    Args:
        weights: [R, C] int64, in order. Mutated.
        totals: [R, 1] int64, the mass that counts as 1; more than the row's sum where C cuts it.
        top_p: [R, 1] fp64.

    Returns:
        [R] bool: the prefix ends within the C columns.
    """
    cumulative = weights.cumsum(-1)
    needed = torch.minimum((top_p * totals).ceil().to(torch.int64), totals).clamp_(min=1)
    reached = cumulative[:, -1:] >= needed
    weights.masked_fill_(cumulative - weights >= needed, 0)
    return reached.squeeze(1)


def top_tokens(
    logits: Tensor, peaks: Tensor, knobs: Knobs, max_top_k: int
) -> tuple[Tensor, Tensor]:
    """Ids and weights, [R, max_top_k] each, for rows that all have `top_k <= max_top_k`."""
    unit = weight_unit(logits.shape[1])
    ids = top_ids(logits, max_top_k)
    differences = logits.gather(1, ids) - peaks
    weights = scaled_weights(differences, knobs.temperature, unit).to(torch.int64)
    weights.masked_fill_(torch.arange(max_top_k, device=ids.device) >= knobs.top_k, 0)
    keep_nucleus(weights, weights.sum(-1, keepdim=True), knobs.top_p)
    return ids, keep_likely(weights, knobs.min_p, unit)


def first_tokens(
    logits: Tensor, weights: Tensor, knobs: Knobs, num_candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """top_p and min_p without top_k, looking at the first tokens of each row only.

    Args:
        logits: [R, V] fp32.
        weights: [R, V] int64, of all tokens.
        num_candidates: C, at most V.

    Returns:
        Ids and weights, [R, C] each, and [R] bool: False where the nucleus is longer than C and
        `selected_tokens` must find it.
    """
    ids = top_ids(logits, num_candidates)
    some = weights.gather(1, ids)
    reached = keep_nucleus(some, weights.sum(-1, keepdim=True), knobs.top_p)
    return ids, keep_likely(some, knobs.min_p, weight_unit(logits.shape[1])), reached


def selected_tokens(
    logits: Tensor, weights: Tensor, params: SamplingParams
) -> tuple[Tensor, Tensor]:
    """Any top_k, top_p and min_p for one row.

    Tokens below `(1 - p) / V` of the mass hold less than `1 - p` together, so the nucleus is looked
    for among the others.

    Args:
        logits: [V] fp32.
        weights: [V] int64, of all tokens.

    Returns:
        Ids and weights, [C] each, C as long as needed, by id.
    """
    num_ids = len(logits)
    top_k = top_k_limit(params, num_ids)
    mass = int(weights.sum())
    spared = 0 if top_k < num_ids else int((1.0 - params.top_p) * mass) // num_ids
    ids = (weights > spared // 2).nonzero().squeeze(1)  # half: room for rounding in `spared`
    values, kept = logits[ids], weights[ids]
    if top_k < len(ids):
        last = last_key(order_keys(values, ids), -values, torch.ones_like(kept), top_k)
        chosen = order_keys(values, ids) >= last
        ids, values, kept = ids[chosen], values[chosen], kept[chosen]
    if params.top_p < 1.0:
        if top_k < num_ids:
            mass = int(kept.sum())
        needed = max(1, min(mass, math.ceil(params.top_p * mass)))
        keys = order_keys(values, ids)
        chosen = keys >= last_key(keys, -values, kept, needed)
        ids, kept = ids[chosen], kept[chosen]
    chosen = kept >= int(params.min_p * weight_unit(num_ids))
    return ids[chosen], kept[chosen]


def keep_typical(weights: Tensor, typical_p: float) -> Tensor:
    """The weights of one row with the untypical tokens zeroed.

    Args:
        weights: [C] int64. Floating sums decide the entropy, so this takes one row at a time.
    """
    columns = weights.nonzero().squeeze(1)
    kept = weights[columns]
    total = int(kept.sum())
    probabilities = kept.to(torch.float64) / total
    information = -probabilities.log()
    distance = (information - (probabilities * information).sum()).abs()
    keys = -distance.view(torch.int64)  # non-negative doubles sort as their bits do
    needed = max(1, min(total, math.ceil(typical_p * total)))
    chosen = keys >= last_key(keys, distance, kept, needed)
    return torch.zeros_like(weights).index_put_((columns[chosen],), kept[chosen])


def last_key(keys: Tensor, costs: Tensor, masses: Tensor, needed: int) -> Tensor:
    """The key at which masses, added from the greatest key down, first reach `needed`.

    A histogram over `costs` finds the bin where that happens; only the bin is sorted.

    Args:
        keys: [C] int64.
        costs: [C] floating, finite; never less for a smaller key.
        masses: [C] int64, with sum at least `needed`.
        needed: positive.
    """
    costs = costs.to(torch.float64)  # the span of extreme logits would overflow fp32
    low, high = costs.min(), costs.max()
    scale = (_NUM_BINS - 1) / (high - low).clamp(min=1e-30)
    bins = ((costs - low) * scale).to(torch.int64).clamp_(max=_NUM_BINS - 1)
    histogram = masses.new_zeros(_NUM_BINS).scatter_add_(0, bins, masses)
    cumulative = histogram.cumsum(0)
    threshold = torch.searchsorted(cumulative, masses.new_tensor([needed]))
    inside = (bins == threshold).nonzero().squeeze(1)
    order = keys[inside].sort(descending=True)
    before = cumulative[threshold] - histogram[threshold]
    running = before + masses[inside][order.indices].cumsum(0)
    return order.values[torch.searchsorted(running, masses.new_tensor([needed]))]


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse transform: the column where the running sum first exceeds `uniform * total`.

    Args:
        weights: [R, C] int64, a positive one in each row.
        uniforms: [R] fp64 in [0, 1).

    Returns:
        [R] int64 columns, never one of weight 0.
    """
    block = DRAW_BLOCK if weights.shape[1] % DRAW_BLOCK == 0 else 1
    blocks = weights.view(len(weights), -1, block)
    sums = blocks.sum(-1) if block > 1 else weights
    cumulative = sums.cumsum(-1)
    totals = cumulative[:, -1:]
    # A uniform is at most 1 - 2**-53, so the product rounds to less than the total.
    targets = (uniforms.unsqueeze(1) * totals).to(torch.int64)
    hit = torch.searchsorted(cumulative, targets, right=True)
    if block == 1:
        return hit.squeeze(1)
    targets -= cumulative.gather(1, hit) - sums.gather(1, hit)
    inside = blocks[torch.arange(len(blocks), device=hit.device), hit.squeeze(1)].cumsum(-1)
    return (hit * block + torch.searchsorted(inside, targets, right=True)).squeeze(1)
