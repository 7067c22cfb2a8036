"""Computes the distribution that a request's next token should follow: one row, by sorting, in
double precision.

Shares no code with the sampler. Returns the whole distribution, so that a test can compare both the
tokens that may be drawn and how often they should be.
"""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.contract.sampling_params import SamplingParams

Floats = NDArray[np.float64]


def distribution(
    logits: Floats,
    params: SamplingParams,
    prompt_ids: Sequence[int] = (),
    output_ids: Sequence[int] = (),
    suppressed_ids: Collection[int] = (),
) -> Floats:
    """Probabilities of the next token, [V], summing to 1.

    Args:
        logits: [V], finite or −infinity.
        params: the request's parameters.
        prompt_ids: its prompt.
        output_ids: the tokens generated so far.
        suppressed_ids: tokens that must not come before `params.min_tokens`.
    """
    logits = penalised(logits, params, prompt_ids, output_ids)
    if len(output_ids) < params.min_tokens:
        logits[list(suppressed_ids)] = -np.inf
    if params.temperature == 0:
        return _only(np.ones_like(logits), _by_logit(logits)[:1])
    if params.top_n_sigma:
        logits = keep_near_peak(logits, params.top_n_sigma)
    probabilities = softmax(logits / temperature_of(logits, params))
    for step in STEPS.values():
        probabilities = step(probabilities, logits, params)
    return probabilities


def penalised(
    logits: Floats, params: SamplingParams, prompt_ids: Sequence[int], output_ids: Sequence[int]
) -> Floats:
    """Copy the logits and apply penalties and bias."""
    logits = logits.copy()
    if params.repeat_last_n >= 0:
        from_prompt = max(0, params.repeat_last_n - len(output_ids))
        prompt_ids = list(prompt_ids)[max(0, len(prompt_ids) - from_prompt) :]
        output_ids = list(output_ids)[max(0, len(output_ids) - params.repeat_last_n) :]
    for token_id in {*prompt_ids, *output_ids}:
        above = logits[token_id] > 0
        factor = 1 / params.repetition_penalty if above else params.repetition_penalty
        logits[token_id] *= factor
    for token_id in set(output_ids):
        logits[token_id] -= params.frequency_penalty * list(output_ids).count(token_id)
        logits[token_id] -= params.presence_penalty
    for token_id, bias in params.logit_bias.items():
        logits[token_id] += bias
    return logits


def keep_near_peak(logits: Floats, num_sigmas: float) -> Floats:
    """Keep tokens whose logit is at most `num_sigmas` standard deviations of the possible ones
    below the greatest."""
    sigma = logits[np.isfinite(logits)].std()
    return np.where(logits >= logits.max() - num_sigmas * sigma, logits, -np.inf)


def temperature_of(logits: Floats, params: SamplingParams) -> float:
    """Return the temperature, the dynamic one if the request has one."""
    num_possible = int(np.isfinite(logits).sum())
    if not params.dynatemp_range or num_possible < 2:
        return params.temperature
    probabilities = softmax(logits)
    some = probabilities[probabilities > 0]
    share = -(some * np.log(some)).sum() / np.log(num_possible)
    low = max(0.0, params.temperature - params.dynatemp_range)
    high = params.temperature + params.dynatemp_range
    temperature: float = low + (high - low) * min(share, 1.0) ** params.dynatemp_exponent
    return max(temperature, 1e-5)


def softmax(scores: Floats) -> Floats:
    weights: Floats = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights


def keep_top_k(probabilities: Floats, logits: Floats, params: SamplingParams) -> Floats:
    """Keep the k likeliest tokens; of equally likely ones those with the lowest ids."""
    if params.top_k <= 0:
        return probabilities
    return _only(probabilities, _by_logit(logits)[: params.top_k])


def keep_top_p(probabilities: Floats, logits: Floats, params: SamplingParams) -> Floats:
    """Keep the likeliest tokens until they have p of the mass; at least one."""
    if params.top_p >= 1:
        return probabilities
    order = _by_logit(logits)
    return _only(probabilities, order[: _num_until(probabilities[order], params.top_p)])


def keep_min_p(probabilities: Floats, logits: Floats, params: SamplingParams) -> Floats:
    """Keep tokens with at least min_p of the likeliest one's probability."""
    bound = params.min_p * probabilities.max()
    return _only(probabilities, np.flatnonzero(probabilities >= bound))


def keep_typical(probabilities: Floats, logits: Floats, params: SamplingParams) -> Floats:
    """Keep tokens whose information is closest to the entropy until they have p of the mass."""
    if params.typical_p >= 1:
        return probabilities
    possible = np.flatnonzero(probabilities)
    information = -np.log(probabilities[possible])
    entropy = (probabilities[possible] * information).sum()
    distance = np.abs(information - entropy)
    order = np.argsort(distance, kind="stable")
    last = _num_until(probabilities[possible][order], params.typical_p) - 1
    return _only(probabilities, possible[distance <= distance[order[last]]])


def exclude_top_choices(probabilities: Floats, logits: Floats, params: SamplingParams) -> Floats:
    """Drop tokens with at least `xtc_threshold` of probability, except the least likely of them."""
    if not params.xtc_probability or params.xtc_threshold > 0.5:
        return probabilities
    assert params.xtc_probability == 1, "whether it happens is not known here"
    order = _by_logit(logits)
    left_out = order[probabilities[order] >= params.xtc_threshold][:-1]
    return _only(probabilities, np.setdiff1d(np.flatnonzero(probabilities), left_out))


STEPS = {
    "top_k": keep_top_k,
    "top_p": keep_top_p,
    "min_p": keep_min_p,
    "typical_p": keep_typical,
    "xtc": exclude_top_choices,
}
"""The steps that leave tokens out by their probabilities, in the usual order."""
SHARES = [name for name in STEPS if name not in ("top_k", "xtc")]
"""The parameters of steps that are shares of a probability."""


def _by_logit(logits: Floats) -> NDArray[np.int64]:
    """Sort ids from the highest logit to the lowest, equals by id."""
    return np.argsort(-logits, kind="stable")


def _num_until(probabilities: Floats, mass: float) -> int:
    """Count how many, from the first on, it takes to reach the mass; at least one."""
    return min(len(probabilities), int((np.cumsum(probabilities) < mass).sum()) + 1)


def _only(probabilities: Floats, kept: NDArray[np.int64]) -> Floats:
    result = np.zeros_like(probabilities)
    result[kept] = probabilities[kept]
    result /= result.sum()
    return result
