"""Two kernels, one for every split of every row and one that joins a row's splits, without sorting.

    row      [ split                  | split                  | ...     4096 ids, a program each
             [ block | block | ...    | block | block | ...              64 ids

A split gives its maximum; the sums of exponentials relative to the maximum, of these times the
distance from it, and of these times the square; and the number of logits above the chosen one's; if
alternatives are wanted, also each block's maximum. A row's program adds all that up in one order.
As in `ranking.first_ids`, the likeliest n tokens are in the n blocks with the greatest maxima; both
choices take the greatest key n times.

Splits depend on the vocabulary alone, and multiplications and additions are not fused, since fusing
might differ with and without alternatives: a row's bits do not depend on other rows or on the
number of alternatives.
"""

import torch
from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton
from kernels.score_tokens.token_scores import TokenScores
from kernels.shared.logit_rows import contiguous_rows
from kernels.shared.triton_order import order_keys

MAX_TOP = 32
"""The most alternatives, more than a client may ask for; their blocks are a tile in registers."""
MAX_TOKENS = 1 << 19
"""The most tokens of a vocabulary: the maxima of its blocks are a tile, too."""
BLOCK_SIZE = 64
BLOCKS_PER_SPLIT = 64
SPLIT_SIZE = BLOCKS_PER_SPLIT * BLOCK_SIZE
LEAST_MAX_SPLITS = 16
"""The least maximum of splits, so that small vocabularies share a kernel."""
NUM_PARTS = 5
"""Numbers of a split."""
NUM_WARPS = 8

_MAX_TOP, _BLOCK_SIZE = tl.constexpr(MAX_TOP), tl.constexpr(BLOCK_SIZE)
_BLOCKS_PER_SPLIT, _SPLIT_SIZE = tl.constexpr(BLOCKS_PER_SPLIT), tl.constexpr(SPLIT_SIZE)
_NUM_PARTS = tl.constexpr(NUM_PARTS)
_LEAST_DISTANCE = tl.constexpr(-87.0)
"""The largest distance of a logit from the greatest; logits farther away have no share in a
mean."""
_MOST_ID = tl.constexpr((1 << 31) - 1)
_LEAST_KEY = tl.constexpr(-(1 << 63))
"""A key that is less than any token's."""


def supports(logits: Tensor, token_ids: Tensor, num_top: int) -> bool:
    """Supports GPU logits, few alternatives, and vocabularies that are not too large."""
    num_tokens = logits.shape[1]
    few = min(num_top, num_tokens) <= MAX_TOP and num_tokens <= MAX_TOKENS
    return few and _triton.runs_on(logits, token_ids)


def score_tokens(logits: Tensor, token_ids: Tensor, num_top: int) -> TokenScores:
    """See `kernels.score_tokens`."""
    logits, token_ids = contiguous_rows(logits), token_ids.contiguous()
    num_rows, num_tokens = logits.shape
    num_top = min(num_top, num_tokens)
    num_splits = triton.cdiv(num_tokens, SPLIT_SIZE)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    parts = empty(num_rows, NUM_PARTS, num_splits)
    maxima = empty(num_rows, triton.cdiv(num_tokens, BLOCK_SIZE)) if num_top else None
    scores = TokenScores(
        logprobs=empty(num_rows),
        ranks=empty(num_rows, dtype=torch.int64),
        top_ids=empty(num_rows, num_top, dtype=torch.int64),
        top_logprobs=empty(num_rows, num_top),
        entropies=empty(num_rows),
        varentropies=empty(num_rows),
        is_finite=empty(num_rows, dtype=torch.bool),
    )
    if num_rows == 0:
        return scores
    _score_split_kernel[(num_rows, num_splits)](
        logits,
        logits.stride(0),
        token_ids,
        parts,
        maxima,
        num_tokens,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    _score_row_kernel[(num_rows,)](
        logits,
        logits.stride(0),
        token_ids,
        parts,
        maxima,
        scores.logprobs,
        scores.ranks,
        scores.top_ids,
        scores.top_logprobs,
        scores.entropies,
        scores.varentropies,
        scores.is_finite,
        num_tokens,
        num_top,
        MAX_SPLITS=_max_splits(num_tokens),
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    return scores


def _max_splits(num_tokens: int) -> int:
    splits: int = triton.next_power_of_2(triton.cdiv(num_tokens, SPLIT_SIZE))
    return max(splits, LEAST_MAX_SPLITS)


@triton.jit
def _score_split_kernel(
    logits_ptr,
    logits_row_stride,
    token_ids_ptr,
    parts_ptr,
    maxima_ptr,
    num_tokens,
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    x_ptr = logits_ptr + row * logits_row_stride
    blocks = split * _BLOCKS_PER_SPLIT + tl.arange(0, _BLOCKS_PER_SPLIT)
    ids = blocks[:, None] * _BLOCK_SIZE + tl.arange(0, _BLOCK_SIZE)[None, :]
    x = tl.load(x_ptr + ids, mask=ids < num_tokens, other=float("-inf")).to(tl.float32)
    is_fine = x < float("inf")  # NaN is not less
    x = tl.where(is_fine, x, float("-inf"))
    maxima = tl.max(x, 1)
    peak = tl.max(maxima, 0)
    distances = x - tl.where(peak > float("-inf"), peak, 0.0)
    exponentials = tl.exp(distances)
    distances = tl.maximum(distances, _LEAST_DISTANCE)
    own = tl.load(x_ptr + tl.load(token_ids_ptr + row)).to(tl.float32)
    num_above = _sum(tl.where(x > own, 1, 0))
    is_bad = _sum(tl.where(is_fine, 0, 1)) > 0
    num_splits = tl.num_programs(1)
    part_ptr = parts_ptr + row * _NUM_PARTS * num_splits + split
    tl.store(part_ptr, tl.where(is_bad, float("inf"), peak))
    tl.store(part_ptr + num_splits, _sum(exponentials))
    tl.store(part_ptr + 2 * num_splits, num_above.to(tl.float32))  # small enough to be exact
    tl.store(part_ptr + 3 * num_splits, _sum(exponentials * distances))
    tl.store(part_ptr + 4 * num_splits, _sum(exponentials * distances * distances))
    if maxima_ptr is not None:
        num_blocks = tl.cdiv(num_tokens, _BLOCK_SIZE)
        tl.store(maxima_ptr + row * num_blocks + blocks, maxima, mask=blocks < num_blocks)


@triton.jit
def _sum(x):
    """Sum a tile of two dimensions."""
    return tl.sum(tl.sum(x, 1), 0)


# Clients choose `num_top`, so its values must not specialise kernels.
@triton.jit(do_not_specialize=["num_top"])
def _score_row_kernel(
    logits_ptr,
    logits_row_stride,
    token_ids_ptr,
    parts_ptr,
    maxima_ptr,
    logprobs_ptr,
    ranks_ptr,
    top_ids_ptr,
    top_logprobs_ptr,
    entropies_ptr,
    varentropies_ptr,
    is_finite_ptr,
    num_tokens,
    num_top,
    MAX_SPLITS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr = logits_ptr + row * logits_row_stride
    num_splits = tl.cdiv(num_tokens, _SPLIT_SIZE)
    splits = tl.arange(0, MAX_SPLITS)
    part_ptr = parts_ptr + row * _NUM_PARTS * num_splits + splits
    peaks = tl.load(part_ptr, mask=splits < num_splits, other=float("-inf"))
    sums = tl.load(part_ptr + num_splits, mask=splits < num_splits, other=0.0)
    above = tl.load(part_ptr + 2 * num_splits, mask=splits < num_splits, other=0.0)
    firsts = tl.load(part_ptr + 3 * num_splits, mask=splits < num_splits, other=0.0)
    seconds = tl.load(part_ptr + 4 * num_splits, mask=splits < num_splits, other=0.0)
    peak = tl.max(peaks, 0)
    is_fine = (peak < float("inf")) & (peak > float("-inf"))
    # Numbers of a bad row are meaningless; these are in range.
    peak = tl.where(is_fine, peak, 0.0)
    peaks = tl.where(is_fine, peaks, 0.0)
    total = tl.where(is_fine, tl.sum(sums * tl.exp(peaks - peak), 0), 1.0)
    log_sum = tl.log(total)
    # The distances of a split are taken from the row's peak: each grows by the same amount.
    farther = tl.maximum(peaks - peak, _LEAST_DISTANCE)
    shares = tl.exp(farther)
    mean = tl.sum(shares * (firsts + farther * sums), 0) / total
    second = seconds + 2.0 * farther * firsts + farther * farther * sums
    varentropy = tl.sum(shares * second, 0) / total - mean * mean
    tl.store(entropies_ptr + row, log_sum - mean)
    tl.store(varentropies_ptr + row, tl.maximum(varentropy, 0.0))
    own = tl.load(x_ptr + tl.load(token_ids_ptr + row)).to(tl.float32)
    tl.store(logprobs_ptr + row, own - peak - log_sum)
    tl.store(ranks_ptr + row, tl.sum(above.to(tl.int32), 0).to(tl.int64) + 1)
    tl.store(is_finite_ptr + row, is_fine)
    if maxima_ptr is not None:
        num_blocks = tl.cdiv(num_tokens, _BLOCK_SIZE)
        blocks = tl.arange(0, MAX_SPLITS * _BLOCKS_PER_SPLIT)
        is_block = blocks < num_blocks
        maxima = tl.load(maxima_ptr + row * num_blocks + blocks, mask=is_block, other=0.0)
        block_keys = _greatest(_keys(maxima, blocks, is_block), num_top)
        ids = _ids(block_keys)[:, None] * _BLOCK_SIZE + tl.arange(0, _BLOCK_SIZE)[None, :]
        is_token = (block_keys > _LEAST_KEY)[:, None] & (ids < num_tokens)
        x = tl.load(x_ptr + ids, mask=is_token, other=0.0).to(tl.float32)
        keys = _greatest(tl.reshape(_keys(x, ids, is_token), (_MAX_TOP * _BLOCK_SIZE,)), num_top)
        slots = tl.arange(0, _MAX_TOP)
        top_at = row * num_top + slots
        tl.store(top_ids_ptr + top_at, _ids(keys).to(tl.int64), mask=slots < num_top)
        tl.store(top_logprobs_ptr + top_at, _values(keys) - peak - log_sum, mask=slots < num_top)


@triton.jit
def _keys(values, ids, exists):
    """Return integers that sort as those of `ranking.order_keys`."""
    keys = (order_keys(values).to(tl.int64) << 32) + (ids ^ _MOST_ID)
    return tl.where(exists, keys, _LEAST_KEY)


@triton.jit
def _ids(keys):
    """Return the ids that went into `_keys`."""
    return keys.to(tl.int32) ^ _MOST_ID


@triton.jit
def _values(keys):
    """Return the values that went into `_keys`; both zeros become the positive one."""
    ordered = (keys >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _greatest(keys, count):
    """Return the `count` greatest keys, in order; if there are fewer, the least key follows."""
    slots = tl.arange(0, _MAX_TOP)
    found = tl.full((_MAX_TOP,), _LEAST_KEY, tl.int64)
    for slot in range(count):
        greatest = tl.max(keys, 0)
        found = tl.where(slots == slot, greatest, found)
        keys = tl.where(keys == greatest, _LEAST_KEY, keys)
    return found
