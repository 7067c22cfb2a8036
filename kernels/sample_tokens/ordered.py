"""Rows whose steps come in an order of their own: what they leave is found before the draw.

Steps leave tokens out, and temperature scales what is left: so whatever the order, a row draws from
some tokens at some temperature. Both are worked out here row by row, as the definition does it, by
sorting; then the row goes the way of all others, with no step of its own left to do. It waits for
the device: this is for the few who ask.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.sample_tokens import reference
from kernels.sample_tokens.columns import COLUMNS
from kernels.sample_tokens.edits import edited
from kernels.sample_tokens.rows import SamplingRows

_Step = Callable[[Tensor, Tensor, dict[str, Any]], None]

STEPS: Mapping[str, _Step] = {
    "top_k": reference.top_k,
    "top_p": reference.top_p,
    "min_p": reference.min_p,
    "typical_p": reference.typical_p,
    "xtc": reference.xtc,
}
_KEPT_COLUMNS = ("seed", "index", "position")


def in_order(
    logits: Tensor, rows: SamplingRows, orders: Mapping[int, Sequence[str]]
) -> tuple[Tensor, SamplingRows]:
    """What `sample_tokens` is to be given so that some rows' steps act in their orders.

    Args:
        logits: [R, V], as for `sample_tokens`. Not changed.
        rows: with the parameters of the steps.
        orders: row → names, of `STEPS`, `top_n_sigma` and `temperature`, each at most once; steps
            that are not named do not act. Greedy rows and bad ones (`SampledTokens.errors`) stay
            as they are.

    Returns:
        Logits and rows in which all else is as it was.
    """
    all_knobs, work = rows.host_knobs(), edited(logits, rows.edits)
    logits = logits.clone()
    table = rows.table.cpu().numpy().copy()
    for row, order in orders.items():
        knobs, values = all_knobs[row], work[row]
        is_bad = not bool(logits[row].amax().isfinite() & values.amax().isfinite())
        if is_bad or knobs["inverse_temperature"] == math.inf:
            continue
        ids, scale = narrowed(values, knobs, order)
        # The edits leave -infinity alone, so they can be applied to what is left once more.
        left = torch.full_like(logits[row], -torch.inf).index_copy_(0, ids, logits[row][ids])
        logits[row] = left
        for place, column in enumerate(COLUMNS):
            if column.name not in _KEPT_COLUMNS:
                neutral = scale if column.name == "inverse_temperature" else column.neutral
                table[row, place] = _bits(neutral) if column.is_float else int(neutral)
    return logits, SamplingRows(table=torch.from_numpy(table).to(logits.device), edits=rows.edits)


def narrowed(values: Tensor, knobs: dict[str, Any], order: Sequence[str]) -> tuple[Tensor, float]:
    """One row's steps.

    Args:
        values: [V] fp32, finite or -infinity, not all the latter.

    Returns:
        The ids of the tokens that are left, and what their values are multiplied by before the
        draw: the inverse of the temperature.
    """
    scale = 1.0
    ids = (values > -torch.inf).nonzero().flatten()
    values = values[ids]
    for name in order:
        if name == "temperature":
            scale = reference.dynamic_scale(values, knobs)
            continue
        if name == "top_k" and knobs["top_k"] < len(ids):  # sorting all of them takes long
            few = values >= values.topk(knobs["top_k"]).values[-1]
            ids, values = ids[few], values[few]
        left = _left_by(name, values, scale, knobs)
        ids, values = ids[left], values[left]
    return ids, scale


def _left_by(name: str, values: Tensor, scale: float, knobs: dict[str, Any]) -> Tensor:
    """Places of the values, all finite, that a step leaves."""
    if name == "top_n_sigma":
        return (reference.near_peak(values, knobs["top_n_sigma"]) > -torch.inf).nonzero().flatten()
    places = torch.arange(len(values), device=values.device)
    if name != "min_p":  # which is the same in any order
        places = (values + 0.0).sort(descending=True, stable=True).indices
    scores = reference.scaled_scores(values, values.max(), scale)[places]
    kept = reference.scaled_weights(scores, len(values))
    STEPS[name](kept, scores, knobs)
    return places[kept > 0].sort().values


def _bits(number: float) -> int:
    return int(np.float64(number).view(np.int64))
