"""The definition: one row at a time, by sorting; `STEPS` are the steps that can leave tokens out.

Probabilities are integers: `floor(exp((x - max) / temperature) * unit)`, where the likeliest
token's is `unit`. Sums of integers do not depend on the order of addition, so no implementation,
batch size or thread count can move a threshold. `unit` is 2**62 over a power of two above the
vocabulary size (2**46 for 49 152 tokens), so totals fit an int64; a token below `1 / unit` of the
likeliest has weight 0 and is never drawn.
"""

import math
from typing import Any

import torch
from torch import Tensor

from kernels.sample_tokens import noise
from kernels.sample_tokens.edits import edited
from kernels.sample_tokens.rows import (
    FINE,
    MIN_TEMPERATURE,
    NO_TOKEN_LEFT,
    NOT_FINITE,
    SampledTokens,
    SamplingRows,
)

_XTC_WORD = 2
"""The last word of the random counter of `xtc`."""
_EXP_TERMS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)


def sample_tokens(logits: Tensor, rows: SamplingRows) -> SampledTokens:
    """Draw one token per row.

    A row's steps, each on what the one before left:

        edits      penalties, biases, bans, masks (`kernels.sample_tokens.rows.LogitEdits`)
        greedy     temperature 0: the first maximum, and nothing else applies
        steps      `STEPS`, one after the other: which tokens may be drawn
        draw       token i with probability w_i / sum(w): the least of E_i / w_i, where E_i is
                   exponentially distributed (the Gumbel-max trick without its outer logarithm)

    Every step keeps at least one token. The weights w are integers (see the top of this file), and
    E_i is a function of (seed, index, position, i) (`noise.py`), both free of library functions. So
    every implementation on every machine gives the same tokens, and a row's token depends on its
    own logits and parameters alone. No implementation but the reference sorts, and none but the
    reference waits for the device.

    Args:
        logits: [R, V], any float dtype, any strides, V below 2**31. Not changed.
        rows: parameters of the R rows, on logits' device.

    Returns:
        Tokens, or why a row has none; a bad row does not disturb the others.

    Paper: exponential races, Efraimidis and Spirakis 2006, doi:10.1016/j.ipl.2005.11.003. The steps
    name their own.
    """
    work = edited(logits, rows.edits)
    drawn = [_draw(logits[i], work[i], knobs) for i, knobs in enumerate(rows.host_knobs())]
    table = torch.tensor(drawn, dtype=torch.int64).view(-1, 5).to(logits.device)
    token_ids, errors, num_kept = table[:, :3].unbind(1)
    return SampledTokens(token_ids=token_ids, errors=errors, num_kept=num_kept, masses=table[:, 3:])


def weights(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Return the weights that `sample_tokens` draws from, [R, V] int64; a row with an error is all
    zeros."""
    work = edited(logits, rows.edits)
    result = torch.zeros(work.shape, dtype=torch.int64, device=work.device)
    for i, knobs in enumerate(rows.host_knobs()):
        if _error(logits[i], work[i]) == FINE:
            result[i] = kept_weights(work[i], knobs)
    return result


def _draw(logits: Tensor, work: Tensor, knobs: dict[str, Any]) -> tuple[int, int, int, int, int]:
    """Return the token, the error, the number of tokens kept, and the masses of the token and of
    all kept ones, for one row."""
    error = _error(logits, work)
    if error != FINE:
        return 0, error, 0, 0, 0
    kept = kept_weights(work, knobs)
    key = {name: knobs[name] for name in ("seed", "index", "position")}
    times = noise.exponentials(len(work), **key, device=work.device)
    # Token i arrives at time E_i / w_i; the first one is token i with probability w_i / sum(w).
    token_id = (
        (kept.float() * noise.reciprocal(times)).max(-1).indices
    )  # of equal maxima the first, as documented
    is_told = knobs["least_probability"] > 0.0 and knobs["inverse_temperature"] < math.inf
    masses = (int(kept[token_id]), int(kept.sum())) if is_told else (0, 0)
    return int(token_id), FINE, int((kept > 0).sum()), *masses


def _error(logits: Tensor, work: Tensor) -> int:
    if not bool(logits.amax().isfinite()):  # NaN and +infinity win every maximum
        return NOT_FINITE
    return FINE if bool(work.amax().isfinite()) else NO_TOKEN_LEFT


def kept_weights(values: Tensor, knobs: dict[str, Any]) -> Tensor:
    """Return the weights of the tokens of one row that may be drawn: [V] int64, 0 for the others.

    Args:
        values: [V] fp32, finite or -infinity, not all the latter.
        knobs: one entry of `SamplingRows.host_knobs`.
    """
    order = (values + 0.0).sort(descending=True, stable=True).indices
    if knobs["inverse_temperature"] == math.inf:
        return torch.zeros_like(order).index_fill_(0, order[:1], 1)
    values = near_peak(values, knobs["top_n_sigma"])
    scale = dynamic_scale(values, knobs)
    scores = scaled_scores(values, values.max(), scale)[order]
    kept = scaled_weights(scores, len(values))
    for step in STEPS:
        step(kept, scores, knobs)
    return torch.zeros_like(kept).index_put_((order,), kept)


def near_peak(values: Tensor, num_sigmas: float) -> Tensor:
    """Leave out tokens that are more than `num_sigmas` standard deviations of all logits below the
    greatest; 0 leaves out none. Temperature does not affect which tokens stay.

    The distances become integers of half a total's bits, so that the sums of their squares do not
    depend on the order. They are halved before, as the whole ones may be beyond fp32.

    Paper: Tang et al. 2024, arXiv:2411.07641, algorithm 1, as in llama.cpp, where impossible tokens
    do not count.
    """
    if not num_sigmas > 0.0:
        return values
    possible = values > -torch.inf
    distances = torch.where(possible, values.max() * 0.5 - values * 0.5, 0.0)
    num_bits = unit_exponent(len(values)) // 2
    exponent = max(num_bits, int(distances.max().view(torch.int32)) >> 23)
    places = (distances * 2.0 ** (num_bits + 126 - exponent)).to(torch.int64)
    num, total = float(possible.sum()), float(places.sum())
    variance = num * float((places * places).sum()) - total * total
    bound = num_sigmas * num_sigmas * variance
    low, high = 0, (1 << num_bits) - 1
    while low < high:
        middle = (low + high + 1) // 2
        reached = middle * num
        low, high = (middle, high) if reached * reached <= bound else (low, middle - 1)
    return values.masked_fill(places > low, -torch.inf)


def dynamic_scale(values: Tensor, knobs: dict[str, Any]) -> float:
    """Return the factor of scores. With dynatemp_range it is the inverse of a temperature within
    that distance of the row's own, the higher the less certain the model is.

    Uncertainty is the entropy at temperature 1, divided by the greatest that this many possible
    tokens can have, to the power of dynatemp_exponent. As in llama.cpp, by kalomaze.
    """
    num = (values > -torch.inf).sum()
    if not knobs["dynatemp_range"] > 0.0 or num < 2:
        return float(knobs["inverse_temperature"])
    scores = scaled_scores(values, values.max(), 1.0)
    masses = scaled_weights(scores, len(values))
    total, weighted = masses.sum().float(), (masses.float() * -scores).to(torch.int64).sum().float()
    entropy = noise.logarithm(total * 2.0 ** -unit_exponent(len(values)))
    entropy += weighted * noise.reciprocal(total)
    share = entropy * noise.reciprocal(noise.logarithm(num.float()))
    power = _fp32(knobs["dynatemp_exponent"]) * noise.logarithm(share.clamp(1e-30, 1.0))
    low = _fp32(max(0.0, knobs["temperature"] - knobs["dynatemp_range"]))
    high = _fp32(knobs["temperature"] + knobs["dynatemp_range"])
    temperature = low + (high - low) * _exp(torch.where(power < -87.0, -87.0, power), 0)
    return float(noise.reciprocal(temperature.clamp(min=MIN_TEMPERATURE)))


def _fp32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def top_k(kept: Tensor, scores: Tensor, knobs: dict[str, Any]) -> None:
    """Keep the k likeliest tokens; among equal logits those with the lowest ids."""
    if knobs["top_k"] > 0:
        kept[knobs["top_k"] :] = 0


def top_p(kept: Tensor, scores: Tensor, knobs: dict[str, Any]) -> None:
    """Keep the shortest prefix of that order with at least p of the mass that top_k left.

    Paper: Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
    """
    if knobs["top_p"] < 1.0:
        before = kept.cumsum(0) - kept
        kept[before >= needed_mass(knobs["top_p"], int(kept.sum()))] = 0


def min_p(kept: Tensor, scores: Tensor, knobs: dict[str, Any]) -> None:
    """Keep tokens with at least min_p of the likeliest token's probability.

    Paper: Nguyen et al. 2024, arXiv:2407.01082, section 3.
    """
    kept[kept < int(knobs["min_p"] * weight_unit(len(kept)))] = 0


def _least_probability(kept: Tensor, scores: Tensor, knobs: dict[str, Any]) -> None:
    """Keep tokens with at least this share of the mass that is left, and the likeliest in any
    case."""
    if knobs["least_probability"] > 0.0:
        needed = needed_mass(knobs["least_probability"], int(kept.sum()))
        kept[kept < min(needed, weight_unit(len(kept)))] = 0


def typical_p(kept: Tensor, scores: Tensor, knobs: dict[str, Any]) -> None:
    """Keep tokens with information closest to the entropy, up to mass p; ties of the last one stay.

    A token's information is the constant `log(total)` minus its score, and the entropy is that
    constant minus the mean score, so the distance between them is that of score and mean.

    Paper: Meister et al. 2023, arXiv:2202.00666, equation 10, as in transformers' warper.
    """
    if knobs["typical_p"] >= 1.0:
        return
    total = int(kept.sum())
    weighted = (kept.float() * -scores).to(torch.int64).sum()
    mean = weighted.float() * noise.reciprocal(kept.sum().float())
    distances = (-scores - mean).abs()
    distances[kept == 0] = torch.inf
    nearest = distances.sort()
    masses = kept[nearest.indices].cumsum(0)
    last = nearest.values[masses >= needed_mass(knobs["typical_p"], total)][0]
    kept[distances > last] = 0


def xtc(kept: Tensor, scores: Tensor, knobs: dict[str, Any]) -> None:
    """Leave out the top choices (tokens with at least xtc_threshold of the mass that is left) with
    probability xtc_probability. The last one of them stays.

    A random number of the row, one per position and separate from the tokens' (`noise.py`), decides
    whether this happens. As in llama.cpp, by p-e-w, the step's inventor.
    """
    if not knobs["xtc_probability"] > 0.0 or knobs["xtc_threshold"] > 0.5:
        return
    key = {name: knobs[name] for name in ("seed", "index", "position")}
    word = int(noise.token_words(1, **key, more=_XTC_WORD, device=kept.device))
    if word < int(knobs["xtc_probability"] * 2.0**32):
        bound = needed_mass(knobs["xtc_threshold"], int(kept.sum()))
        kept[(kept >= bound).nonzero().flatten()[:-1]] = 0


STEPS = (top_k, top_p, min_p, _least_probability, typical_p, xtc)
"""The steps that leave tokens out, in order, each applied to the result of the one before.

A step gets the weights [V] int64, which it zeroes in place, and the scores [V] fp32, both from the
likeliest token to the least likely, equals by id; and the row's knobs. It keeps at least one token.
"""


def needed_mass(share: float, total: int) -> int:
    """Return the mass to reach, at least that of one token."""
    return max(1, min(total, math.ceil(share * float(total))))


def unit_exponent(num_tokens: int) -> int:
    """Return the base-2 logarithm of the likeliest token's weight."""
    return 62 - num_tokens.bit_length()


def weight_unit(num_tokens: int) -> int:
    """Return the weight of the likeliest token."""
    return 1 << unit_exponent(num_tokens)


def scaled_scores(values: Tensor, peak: Tensor, inverse_temperature: float) -> Tensor:
    """Return fp32 logarithms of the probabilities up to a constant, at most 0."""
    scores = (values - peak) * inverse_temperature
    return torch.where(scores < -87.0, -87.0, scores)  # the weight is 0 long before


def scaled_weights(scores: Tensor, num_tokens: int) -> Tensor:
    """Return `floor(exp(scores) * unit)` as int64."""
    return _exp(scores, unit_exponent(num_tokens)).to(torch.int64)


def _exp(scores: Tensor, more: int) -> Tensor:
    """Compute `exp(scores) * 2**more` of scores from -87 to 0.

    Cephes' polynomial in single fp32 additions and multiplications, within 2 units in the last
    place; any IEEE machine computes the same bits.
    """
    exponent = (scores * 1.44269504 + 0.5).floor()
    r = scores - exponent * 0.693359375 + exponent * 2.12194440e-4
    series = torch.full_like(r, _EXP_TERMS[0])
    for term in _EXP_TERMS[1:]:
        series = series * r + term
    fraction = series * r * r + r + 1.0
    power = (exponent.to(torch.int32) + (127 + more)) << 23
    return fraction * power.view(torch.float32)
