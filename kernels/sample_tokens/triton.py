"""A row per program, with its vocabulary in tiles and several passes over it, without sorting.

Sums are of integers, so no order matters; the arithmetic behind decisions is single fp32 operations
(`noise.py`, `reference.py`) and is launched without fused multiply-adds. Tiles are never longer
than a row's next power of two; results do not depend on them.
"""

import torch
from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton
from kernels.sample_tokens.columns import COLUMN, COLUMNS
from kernels.sample_tokens.edits import edited
from kernels.sample_tokens.reference import unit_exponent
from kernels.sample_tokens.rows import (
    FINE,
    NO_TOKEN_LEFT,
    NOT_FINITE,
    SampledTokens,
    SamplingRows,
)
from kernels.shared.logit_rows import contiguous_rows
from kernels.shared.triton_order import order_keys

BLOCK_SIZE = 1024
NUM_WARPS = 8
_LEAST_KEY, _GREATEST_KEY = tl.constexpr(-(1 << 31)), tl.constexpr((1 << 31) - 1)
"""Keys that no float has."""
_FINE, _NOT_FINITE = tl.constexpr(FINE), tl.constexpr(NOT_FINITE)
_NUM_COLUMNS = tl.constexpr(len(COLUMNS))
_INVERSE_TEMPERATURE = tl.constexpr(COLUMN["inverse_temperature"])
_TEMPERATURE = tl.constexpr(COLUMN["temperature"])
_DYNATEMP_RANGE = tl.constexpr(COLUMN["dynatemp_range"])
_DYNATEMP_EXPONENT = tl.constexpr(COLUMN["dynatemp_exponent"])
_TOP_N_SIGMA = tl.constexpr(COLUMN["top_n_sigma"])
_TOP_K = tl.constexpr(COLUMN["top_k"])
_TOP_P = tl.constexpr(COLUMN["top_p"])
_MIN_P = tl.constexpr(COLUMN["min_p"])
_LEAST_PROBABILITY = tl.constexpr(COLUMN["least_probability"])
_TYPICAL_P = tl.constexpr(COLUMN["typical_p"])
_XTC_PROBABILITY = tl.constexpr(COLUMN["xtc_probability"])
_XTC_THRESHOLD = tl.constexpr(COLUMN["xtc_threshold"])
_SEED = tl.constexpr(COLUMN["seed"])
_INDEX = tl.constexpr(COLUMN["index"])
_POSITION = tl.constexpr(COLUMN["position"])


def supports(logits: Tensor, rows: SamplingRows) -> bool:
    """Supports GPU logits."""
    return _triton.runs_on(logits, rows.table)


def sample_tokens(logits: Tensor, rows: SamplingRows) -> SampledTokens:
    """See `kernels.sample_tokens`."""
    num_rows, num_tokens = logits.shape
    # Edits are few and sparse, so some PyTorch operations apply them for all rows.
    work = contiguous_rows(logits) if rows.edits is None else edited(logits, rows.edits)
    token_ids, errors, num_kept = (
        torch.empty(num_rows, dtype=torch.int64, device=logits.device) for _ in range(3)
    )
    masses = torch.empty(num_rows, 2, dtype=torch.int64, device=logits.device)
    if num_rows:
        _sample_tokens_kernel[(num_rows,)](
            work,
            work.stride(0),
            rows.table,
            token_ids,
            errors,
            num_kept,
            masses,
            num_tokens,
            unit_exponent(num_tokens),
            BLOCK_SIZE=min(BLOCK_SIZE, max(64, triton.next_power_of_2(num_tokens))),
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
    if rows.edits is not None:
        was_fine = logits.amax(-1).isfinite()  # NaN and +infinity win every maximum
        token_ids *= was_fine
        num_kept *= was_fine
        masses *= was_fine.unsqueeze(1)
        errors.masked_fill_(errors > 0, NO_TOKEN_LEFT).masked_fill_(~was_fine, NOT_FINITE)
    return SampledTokens(token_ids=token_ids, errors=errors, num_kept=num_kept, masses=masses)


@triton.jit
def _sample_tokens_kernel(
    logits_ptr,
    logits_row_stride,
    table_ptr,
    token_ids_ptr,
    errors_ptr,
    num_kept_ptr,
    masses_ptr,
    num_tokens,
    unit_exponent,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr = logits_ptr + row * logits_row_stride
    knobs_ptr = table_ptr + row * _NUM_COLUMNS
    peak, token_id, is_bad = _peak(x_ptr, num_tokens, BLOCK_SIZE)
    error = tl.where(is_bad, _NOT_FINITE, _FINE)
    token_id = token_id.to(tl.int64)
    num_kept = tl.full((), 1, tl.int64)
    mass = tl.full((), 0, tl.int64)
    total = tl.full((), 0, tl.int64)
    inverse_temperature = _float(knobs_ptr + _INVERSE_TEMPERATURE)
    if (error == _FINE) & (inverse_temperature < float("inf")):
        scale = inverse_temperature.to(tl.float32)
        token_id, num_kept, mass, total = _drawn(
            x_ptr, peak, scale, knobs_ptr, num_tokens, unit_exponent, BLOCK_SIZE
        )
    tl.store(token_ids_ptr + row, tl.where(error == _FINE, token_id, 0))
    tl.store(errors_ptr + row, error.to(tl.int64))
    tl.store(num_kept_ptr + row, tl.where(error == _FINE, num_kept, 0))
    tl.store(masses_ptr + row * 2, mass)
    tl.store(masses_ptr + row * 2 + 1, total)


@triton.jit
def _float(ptr):
    """Read a column of the table that holds an fp64."""
    return tl.load(ptr).to(tl.float64, bitcast=True)


@triton.jit
def _logits(x_ptr, ids, num_tokens):
    """Load fp32 logits, -infinity beyond the row."""
    return tl.load(x_ptr + ids, mask=ids < num_tokens, other=float("-inf")).to(tl.float32)


@triton.jit
def _peak(x_ptr, num_tokens, BLOCK_SIZE: tl.constexpr):
    """Return the maximum, its first index, and whether the maximum is not a number."""
    peaks = tl.full((BLOCK_SIZE,), float("-inf"), tl.float32)
    firsts = tl.arange(0, BLOCK_SIZE)
    is_bad = tl.zeros((BLOCK_SIZE,), tl.int32)
    for start in range(0, num_tokens, BLOCK_SIZE):
        ids = start + tl.arange(0, BLOCK_SIZE)
        x = _logits(x_ptr, ids, num_tokens)
        is_bad = tl.where(x < float("inf"), is_bad, 1)  # NaN is not less
        firsts = tl.where(x > peaks, ids, firsts)
        peaks = tl.where(x > peaks, x, peaks)
    peak = tl.max(peaks, 0)
    first = tl.min(tl.where(peaks == peak, firsts, num_tokens), 0)
    return peak, first, (tl.max(is_bad, 0) > 0) | (peak == float("-inf"))


@triton.jit
def _scores(x, peak, scale):
    """Compute `reference.scaled_scores`."""
    scores = (x - peak) * scale
    return tl.where(scores < -87.0, -87.0, scores)


@triton.jit
def _masses(x, peak, scale, unit_exponent):
    """Compute `reference.scaled_weights`."""
    return _exp(_scores(x, peak, scale), unit_exponent).to(tl.int64)


@triton.jit
def _exp(scores, more):
    """Compute `reference._exp`."""
    exponent = tl.floor(scores * 1.44269504 + 0.5)
    r = scores - exponent * 0.693359375 + exponent * 2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = p * r * r + r + 1.0
    power = (exponent.to(tl.int32) + (127 + more)) << 23
    return p * power.to(tl.float32, bitcast=True)


@triton.jit
def _needed(share, total):
    """Compute `reference.needed_mass`."""
    whole = total.to(tl.float64)
    needed = tl.minimum(tl.ceil(share * whole), whole)
    return tl.maximum(tl.minimum(needed.to(tl.int64), total), 1)


@triton.jit
def _distance_keys(scores, mean):
    """Return keys that are greatest for the score nearest to the mean."""
    return -tl.abs(-scores - mean).to(tl.int32, bitcast=True)


@triton.jit
def _keys_and_masses(
    x_ptr, ids, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean,
    BY_COUNT: tl.constexpr, BY_DISTANCE: tl.constexpr,
):  # fmt: skip
    """Return the keys and masses that `_cut` compares and adds up; dropped tokens have the least
    key and no mass."""
    x = _logits(x_ptr, ids, num_tokens)
    keys = order_keys(x)
    kept = (ids < num_tokens) & ((keys > key) | ((keys == key) & (ids <= last_id)))
    if BY_COUNT:
        masses = tl.full(ids.shape, 1, tl.int64)
    else:
        masses = _masses(x, peak, scale, unit_exponent)
        kept = kept & (masses >= least)
    if BY_DISTANCE:
        keys = _distance_keys(_scores(x, peak, scale), mean)
    return tl.where(kept, keys, _LEAST_KEY), tl.where(kept, masses, 0), x


@triton.jit
def _cut(
    x_ptr, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean, needed,
    BY_COUNT: tl.constexpr, BY_DISTANCE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Keep from the greatest key down, equals by id, until `needed` is reached.

    Bisects the keys; each round moves a border to a key that exists, so that few rounds follow
    once few keys are left.

    Returns:
        The last key that stays, and the last id that stays with it.
    """
    low = tl.full((), _LEAST_KEY, tl.int64)
    high = tl.full((), _GREATEST_KEY, tl.int64)
    while low < high:
        middle = (low + ((high - low + 1) >> 1)).to(tl.int32)
        reached = tl.zeros((BLOCK_SIZE,), tl.int64)
        above = tl.full((BLOCK_SIZE,), _GREATEST_KEY, tl.int32)
        below = tl.full((BLOCK_SIZE,), _LEAST_KEY, tl.int32)
        for start in range(0, num_tokens, BLOCK_SIZE):
            ids = start + tl.arange(0, BLOCK_SIZE)
            keys, masses, _ = _keys_and_masses(
                x_ptr, ids, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean,
                BY_COUNT, BY_DISTANCE,
            )  # fmt: skip
            is_above = keys >= middle
            reached += tl.where(is_above, masses, 0)
            above = tl.minimum(above, tl.where(is_above, keys, _GREATEST_KEY))
            below = tl.maximum(below, tl.where(is_above, _LEAST_KEY, keys))
        is_enough = tl.sum(reached, 0) >= needed
        low = tl.where(is_enough, tl.min(above, 0).to(tl.int64), low)
        high = tl.where(is_enough, high, tl.max(below, 0).to(tl.int64))
    last_key = low.to(tl.int32)
    above_masses = tl.zeros((BLOCK_SIZE,), tl.int64)
    tie_masses = tl.zeros((BLOCK_SIZE,), tl.int64)
    ties = tl.zeros((BLOCK_SIZE,), tl.int32)
    for start in range(0, num_tokens, BLOCK_SIZE):
        ids = start + tl.arange(0, BLOCK_SIZE)
        keys, masses, _ = _keys_and_masses(
            x_ptr, ids, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean,
            BY_COUNT, BY_DISTANCE,
        )  # fmt: skip
        above_masses += tl.where(keys > last_key, masses, 0)
        tie_masses = tl.maximum(tie_masses, tl.where(keys == last_key, masses, 0))
        ties += tl.where(keys == last_key, 1, 0)
    tie_mass = tl.max(tie_masses, 0)
    rest = needed - tl.sum(above_masses, 0)
    last = tl.where(last_key == key, last_id, num_tokens)  # an earlier cut through the same ties
    if rest <= (tl.sum(ties, 0) - 1) * tie_mass:
        seen = tl.full((), 0, tl.int32)
        lasts = tl.zeros((BLOCK_SIZE,), tl.int32)
        for start in range(0, num_tokens, BLOCK_SIZE):
            ids = start + tl.arange(0, BLOCK_SIZE)
            keys, _, _ = _keys_and_masses(
                x_ptr, ids, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean,
                BY_COUNT, BY_DISTANCE,
            )  # fmt: skip
            here = tl.where(keys == last_key, 1, 0)
            before = seen + tl.cumsum(here, 0) - 1
            stays = (here > 0) & (before * tie_mass < rest)
            lasts = tl.maximum(lasts, tl.where(stays, ids, 0))
            seen += tl.sum(here, 0)
        last = tl.max(lasts, 0)
    return last_key, last


@triton.jit
def _total(
    x_ptr, peak, scale, num_tokens, unit_exponent, key, last_id, least,
    TIMES_SCORE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Return the mass of the tokens that are kept; with `TIMES_SCORE` each times its negative
    score."""
    totals = tl.zeros((BLOCK_SIZE,), tl.int64)
    for start in range(0, num_tokens, BLOCK_SIZE):
        ids = start + tl.arange(0, BLOCK_SIZE)
        _, masses, x = _keys_and_masses(
            x_ptr, ids, peak, scale, num_tokens, unit_exponent, key, last_id, least, 0.0,
            False, False,
        )  # fmt: skip
        if TIMES_SCORE:
            masses = (masses.to(tl.float32) * -_scores(x, peak, scale)).to(tl.int64)
        totals += masses
    return tl.sum(totals, 0)


@triton.jit
def _places(x, peak, power):
    """Return distances from the peak in steps of `reference.near_peak`, and which tokens have
    one."""
    possible = x > float("-inf")
    distances = tl.where(possible, peak * 0.5 - x * 0.5, 0.0)
    return (distances * power).to(tl.int64), possible


@triton.jit
def _near_peak(x_ptr, peak, num_sigmas, num_tokens, unit_exponent, BLOCK_SIZE: tl.constexpr):
    """Compute `reference.near_peak`: the order key of the last token that stays, and the number
    that stay."""
    largest = tl.zeros((BLOCK_SIZE,), tl.float32)
    for start in range(0, num_tokens, BLOCK_SIZE):
        x = _logits(x_ptr, start + tl.arange(0, BLOCK_SIZE), num_tokens)
        largest = tl.maximum(largest, tl.where(x > float("-inf"), peak * 0.5 - x * 0.5, 0.0))
    num_bits = tl.full((), 0, tl.int32) + unit_exponent // 2
    exponent = tl.maximum(tl.max(largest, 0).to(tl.int32, bitcast=True) >> 23, num_bits)
    power = ((num_bits + 253 - exponent) << 23).to(tl.float32, bitcast=True)
    nums = tl.zeros((BLOCK_SIZE,), tl.int64)
    sums = tl.zeros((BLOCK_SIZE,), tl.int64)
    squares = tl.zeros((BLOCK_SIZE,), tl.int64)
    for start in range(0, num_tokens, BLOCK_SIZE):
        x = _logits(x_ptr, start + tl.arange(0, BLOCK_SIZE), num_tokens)
        places, possible = _places(x, peak, power)
        nums += tl.where(possible, 1, 0)
        sums += places
        squares += places * places
    num, total = tl.sum(nums, 0).to(tl.float64), tl.sum(sums, 0).to(tl.float64)
    variance = num * tl.sum(squares, 0).to(tl.float64) - total * total
    bound = num_sigmas * num_sigmas * variance
    low = tl.full((), 0, tl.int64)
    high = (tl.full((), 1, tl.int64) << num_bits.to(tl.int64)) - 1
    while low < high:
        middle = low + ((high - low + 1) >> 1)
        reached = middle.to(tl.float64) * num
        is_within = reached * reached <= bound
        low = tl.where(is_within, middle, low)
        high = tl.where(is_within, high, middle - 1)
    keys = tl.full((BLOCK_SIZE,), _GREATEST_KEY, tl.int32)
    nums = tl.zeros((BLOCK_SIZE,), tl.int64)
    for start in range(0, num_tokens, BLOCK_SIZE):
        x = _logits(x_ptr, start + tl.arange(0, BLOCK_SIZE), num_tokens)
        places, possible = _places(x, peak, power)
        stays = possible & (places <= low)
        keys = tl.minimum(keys, tl.where(stays, order_keys(x), _GREATEST_KEY))
        nums += tl.where(stays, 1, 0)
    return tl.min(keys, 0), tl.sum(nums, 0)


@triton.jit
def _dynamic_scale(
    x_ptr, peak, scale, knobs_ptr, num_tokens, unit_exponent, key, BLOCK_SIZE: tl.constexpr
):  # fmt: skip
    """Compute `reference.dynamic_scale` over tokens down to an order key."""
    nums = tl.zeros((BLOCK_SIZE,), tl.int64)
    totals = tl.zeros((BLOCK_SIZE,), tl.int64)
    weighted = tl.zeros((BLOCK_SIZE,), tl.int64)
    for start in range(0, num_tokens, BLOCK_SIZE):
        x = _logits(x_ptr, start + tl.arange(0, BLOCK_SIZE), num_tokens)
        possible = (x > float("-inf")) & (order_keys(x) >= key)
        scores = _scores(x, peak, 1.0)
        masses = tl.where(possible, _exp(scores, unit_exponent).to(tl.int64), 0)
        nums += tl.where(possible, 1, 0)
        totals += masses
        weighted += (masses.to(tl.float32) * -scores).to(tl.int64)
    num, total = tl.sum(nums, 0), tl.sum(totals, 0).to(tl.float32)
    if num > 1:
        unit = ((tl.full((), 127, tl.int32) - unit_exponent) << 23).to(tl.float32, bitcast=True)
        entropy = _logarithm(total * unit)
        entropy += tl.sum(weighted, 0).to(tl.float32) * _reciprocal(total)
        share = entropy * _reciprocal(_logarithm(num.to(tl.float32)))
        share = tl.minimum(tl.maximum(share, 1e-30), 1.0)
        power = _float(knobs_ptr + _DYNATEMP_EXPONENT).to(tl.float32) * _logarithm(share)
        temperature, reach = _float(knobs_ptr + _TEMPERATURE), _float(knobs_ptr + _DYNATEMP_RANGE)
        low = tl.maximum(temperature - reach, 0.0).to(tl.float32)
        high = (temperature + reach).to(tl.float32)
        power = tl.where(power < -87.0, -87.0, power)
        scale = _reciprocal(tl.maximum(low + (high - low) * _exp(power, 0), 1e-5))
    return scale


@triton.jit
def _drawn(
    x_ptr, peak, scale, knobs_ptr, num_tokens, unit_exponent, BLOCK_SIZE: tl.constexpr
):  # fmt: skip
    """Draw the token of a row that is not greedy; return it with the number of candidates and the
    masses."""
    key = tl.full((), _LEAST_KEY, tl.int32)
    last_id = tl.full((), 0, tl.int32) + num_tokens
    least = tl.full((), 0, tl.int64)
    mean = tl.full((), 0.0, tl.float32)
    num_left = tl.full((), 0, tl.int64) + num_tokens
    top_n_sigma = _float(knobs_ptr + _TOP_N_SIGMA)
    if top_n_sigma > 0.0:
        key, num_left = _near_peak(x_ptr, peak, top_n_sigma, num_tokens, unit_exponent, BLOCK_SIZE)
    if _float(knobs_ptr + _DYNATEMP_RANGE) > 0.0:
        scale = _dynamic_scale(
            x_ptr, peak, scale, knobs_ptr, num_tokens, unit_exponent, key, BLOCK_SIZE
        )
    top_k = tl.load(knobs_ptr + _TOP_K)
    if (top_k > 0) & (top_k < num_left):
        key, last_id = _cut(
            x_ptr, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean, top_k,
            True, False, BLOCK_SIZE,
        )  # fmt: skip
    top_p = _float(knobs_ptr + _TOP_P)
    if top_p < 1.0:
        total = _total(
            x_ptr, peak, scale, num_tokens, unit_exponent, key, last_id, least, False, BLOCK_SIZE
        )
        key, last_id = _cut(
            x_ptr, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean,
            _needed(top_p, total), False, False, BLOCK_SIZE,
        )  # fmt: skip
    unit = (tl.full((), 1, tl.int64) << unit_exponent).to(tl.float64)
    least = tl.maximum((_float(knobs_ptr + _MIN_P) * unit).to(tl.int64), 1)
    least_probability = _float(knobs_ptr + _LEAST_PROBABILITY)
    if least_probability > 0.0:
        total = _total(
            x_ptr, peak, scale, num_tokens, unit_exponent, key, last_id, least, False, BLOCK_SIZE
        )
        least = tl.maximum(least, tl.minimum(_needed(least_probability, total), unit.to(tl.int64)))
    typical_p = _float(knobs_ptr + _TYPICAL_P)
    typical_key = tl.full((), _LEAST_KEY, tl.int32)
    if typical_p < 1.0:
        total = _total(
            x_ptr, peak, scale, num_tokens, unit_exponent, key, last_id, least, False, BLOCK_SIZE
        )
        weighted = _total(
            x_ptr, peak, scale, num_tokens, unit_exponent, key, last_id, least, True, BLOCK_SIZE
        )
        mean = weighted.to(tl.float32) * _reciprocal(total.to(tl.float32))
        typical_key, _ = _cut(
            x_ptr, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean,
            _needed(typical_p, total), False, True, BLOCK_SIZE,
        )  # fmt: skip
    is_xtc = _excludes_top_choices(knobs_ptr)
    bound, last_choice = tl.full((), 0, tl.int64), tl.full((), 0, tl.int32)
    if is_xtc:
        bound, last_choice = _top_choices(
            x_ptr, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean,
            typical_key, typical_p < 1.0, _float(knobs_ptr + _XTC_THRESHOLD), BLOCK_SIZE,
        )  # fmt: skip
    token_id, num_kept, mass, total = _raced(
        x_ptr, peak, scale, knobs_ptr, num_tokens, unit_exponent, key, last_id, least, mean,
        typical_key, typical_p < 1.0, bound, last_choice, is_xtc, BLOCK_SIZE,
    )  # fmt: skip
    is_told = least_probability > 0.0
    return token_id, num_kept, tl.where(is_told, mass, 0), tl.where(is_told, total, 0)


@triton.jit
def _drawable(
    x_ptr, ids, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean,
    typical_key, is_typical,
):  # fmt: skip
    """Return order keys, and masses of the tokens that all steps up to typical_p keep."""
    keys, masses, x = _keys_and_masses(
        x_ptr, ids, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean,
        False, False,
    )  # fmt: skip
    if is_typical:
        distance_keys = _distance_keys(_scores(x, peak, scale), mean)
        masses = tl.where(distance_keys >= typical_key, masses, 0)
    return keys, masses


@triton.jit
def _excludes_top_choices(knobs_ptr):
    """Whether `reference.xtc` acts on this row at this position."""
    probability = _float(knobs_ptr + _XTC_PROBABILITY)
    is_xtc = (probability > 0.0) & (_float(knobs_ptr + _XTC_THRESHOLD) <= 0.5)
    if is_xtc:
        zero = tl.full((), 0, tl.uint32)
        position = tl.load(knobs_ptr + _POSITION).to(tl.uint32)
        index = tl.load(knobs_ptr + _INDEX).to(tl.uint32)
        word, _, _, _ = tl.philox(tl.load(knobs_ptr + _SEED), position, index, zero, zero + 2)
        is_xtc = word.to(tl.int64) < (probability * 4294967296.0).to(tl.int64)
    return is_xtc


@triton.jit
def _top_choices(
    x_ptr, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean,
    typical_key, is_typical, share, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Return the mass from which on a token is a top choice, and the last one of them, which
    stays."""
    totals = tl.zeros((BLOCK_SIZE,), tl.int64)
    for start in range(0, num_tokens, BLOCK_SIZE):
        _, masses = _drawable(
            x_ptr, start + tl.arange(0, BLOCK_SIZE), peak, scale, num_tokens, unit_exponent, key,
            last_id, least, mean, typical_key, is_typical,
        )  # fmt: skip
        totals += masses
    bound = _needed(share, tl.sum(totals, 0))
    lowest = tl.full((BLOCK_SIZE,), _GREATEST_KEY, tl.int32)
    lasts = tl.full((BLOCK_SIZE,), -1, tl.int32)
    for start in range(0, num_tokens, BLOCK_SIZE):
        ids = start + tl.arange(0, BLOCK_SIZE)
        keys, masses = _drawable(
            x_ptr, ids, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean,
            typical_key, is_typical,
        )  # fmt: skip
        is_later = (masses >= bound) & (keys <= lowest)  # a lane meets its ids in order
        lasts = tl.where(is_later, ids, lasts)
        lowest = tl.where(is_later, keys, lowest)
    return bound, tl.max(tl.where(lowest == tl.min(lowest, 0), lasts, -1), 0)


@triton.jit
def _raced(
    x_ptr, peak, scale, knobs_ptr, num_tokens, unit_exponent, key, last_id, least, mean,
    typical_key, is_typical, bound, last_choice, is_xtc, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Draw by `noise.py`: sixteen neighbouring tokens have the same word of neighbouring Philox
    blocks."""
    seed = tl.load(knobs_ptr + _SEED)
    position = tl.load(knobs_ptr + _POSITION).to(tl.uint32)
    index = tl.load(knobs_ptr + _INDEX).to(tl.uint32)
    QUARTER: tl.constexpr = BLOCK_SIZE // 4
    best = tl.zeros((QUARTER,), tl.float32)
    winners = tl.zeros((QUARTER,), tl.int32)
    num_kept = tl.zeros((QUARTER,), tl.int32)
    winner_masses = tl.zeros((QUARTER,), tl.int64)
    totals = tl.zeros((QUARTER,), tl.int64)
    for start in range(0, num_tokens, BLOCK_SIZE):
        lanes = tl.arange(0, QUARTER)
        blocks = (start // 4 + lanes).to(tl.uint32)
        zeros = tl.zeros((QUARTER,), tl.uint32)
        words = tl.philox(seed, zeros + position, zeros + index, blocks, zeros)
        more = tl.philox(seed, zeros + position, zeros + index, blocks, zeros + 1)
        for word in tl.static_range(4):
            ids = start + lanes // 16 * 64 + word * 16 + lanes % 16
            _, masses = _drawable(
                x_ptr, ids, peak, scale, num_tokens, unit_exponent, key, last_id, least, mean,
                typical_key, is_typical,
            )  # fmt: skip
            if is_xtc:
                masses = tl.where((masses >= bound) & (ids != last_choice), 0, masses)
            num_kept += tl.where(masses > 0, 1, 0)
            totals += masses
            rates = masses.to(tl.float32) * _reciprocal(_exponentials(words[word], more[word]))
            winner_masses = tl.where(rates > best, masses, winner_masses)
            winners = tl.where(rates > best, ids, winners)  # a lane meets its ids in order
            best = tl.maximum(best, rates)
    most = tl.max(best, 0)
    winner = tl.min(tl.where(best == most, winners, num_tokens), 0)
    is_winner = (best == most) & (winners == winner)
    mass = tl.max(tl.where(is_winner, winner_masses, 0), 0)
    return winner.to(tl.int64), tl.sum(num_kept, 0).to(tl.int64), mass, tl.sum(totals, 0)


@triton.jit
def _exponentials(first, second):
    """Compute `noise.exponential`."""
    v = (first.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    smallest = first.to(tl.float32) * 2.3283064365386963e-10
    smallest += (second.to(tl.float32) + 0.5) * 5.421010862427522e-20
    v = tl.where(first < 256, smallest, v)
    rest = ((~first).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    f, exponent = _parts(rest)
    is_small = first < 1073741824
    return -_log(tl.where(is_small, -v, f), tl.where(is_small, 0.0, exponent))


@triton.jit
def _logarithm(x):
    """Compute `noise.logarithm`."""
    f, exponent = _parts(x)
    return _log(f, exponent)


@triton.jit
def _parts(x):
    """Split a number into f and exponent of `(1 + f) * 2**exponent`."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = ((bits >> 23) - 126).to(tl.float32)
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    is_low = mantissa < 0.70710678
    exponent = tl.where(is_low, exponent - 1.0, exponent)
    return tl.where(is_low, mantissa + mantissa, mantissa) - 1.0, exponent


@triton.jit
def _log(f, exponent):
    """Compute `noise._log`."""
    square = f * f
    p = f * 7.0376836292e-2 + -1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f + -1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f + -1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f + -2.4999993993e-1
    p = p * f + 3.3333331174e-1
    tail = f * square * p + exponent * -2.12194440e-4 - square * 0.5
    return f + tail + exponent * 0.693359375


@triton.jit
def _reciprocal(x):
    """Compute `noise.reciprocal`."""
    y = (0x7EF311C7 - x.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
    y = y * (2.0 - x * y)
    y = y * (2.0 - x * y)
    y = y * (2.0 - x * y)
    return y * (2.0 - x * y)
