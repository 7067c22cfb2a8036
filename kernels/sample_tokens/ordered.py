"""Rows whose steps have an order of their own: their results are found before the draw.

Steps leave tokens out, and temperature scales the rest: so in any order, a row draws from some
tokens at some temperature. Both are computed here; then the row is processed like all others,
without any step of its own left. On a CPU this is done in C++; elsewhere row by row, as in the
definition, by sorting, which waits for the device: it is for the few requests that use it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.sample_tokens import narrow_cpu, reference
from kernels.sample_tokens.columns import COLUMN, COLUMNS
from kernels.sample_tokens.edits import edited
from kernels.sample_tokens.rows import SamplingRows

_STEPS = {step.__name__: step for step in reference.STEPS}
_KEPT_COLUMNS = np.array([COLUMN[name] for name in ("seed", "index", "position")])
_NEUTRAL = np.array(
    [
        np.float64(column.neutral).view(np.int64) if column.is_float else int(column.neutral)
        for column in COLUMNS
    ],
    dtype=np.int64,
)


def in_order(
    logits: Tensor, rows: SamplingRows, orders: Mapping[int, Sequence[str]]
) -> tuple[Tensor, SamplingRows]:
    """Return the arguments for `sample_tokens` with which some rows' steps act in their own orders.

    Args:
        logits: [R, V], as for `sample_tokens`. Not changed.
        rows: rows with the parameters of the steps.
        orders: for each such row the names of steps, from `columns.STEPS`, each at most once; other
            steps do not act. Greedy rows and bad ones (`SampledTokens.errors`) are unchanged.

    Returns:
        Logits and rows; everything else in them is unchanged.
    """
    # Edits leave -infinity alone, so they can be applied again to the remaining tokens.
    find = narrow_cpu.narrow if narrow_cpu.supports(logits) else narrow
    left, scales = find(logits, rows, orders)
    table = rows.table.cpu().numpy().copy()
    has_acted = scales > 0.0
    places = np.fromiter(orders, dtype=np.int64)[has_acted]
    acted = np.tile(_NEUTRAL, (len(places), 1))
    acted[:, _KEPT_COLUMNS] = table[np.ix_(places, _KEPT_COLUMNS)]
    acted[:, COLUMN["inverse_temperature"]] = scales[has_acted].view(np.int64)
    table[places] = acted
    return left, SamplingRows(table=torch.from_numpy(table).to(left.device), edits=rows.edits)


def narrow(
    logits: Tensor, rows: SamplingRows, orders: Mapping[int, Sequence[str]]
) -> tuple[Tensor, NDArray[np.float64]]:
    """Apply the definition of the steps, for which `narrow_cpu` has a faster implementation.

    Returns:
        New logits, in which the tokens that the steps of such a row leave out are impossible. For
            each such row, in the order of `orders`, the factor of its values before the draw; 0 if
            it is unchanged.
    """
    all_knobs, work = rows.host_knobs(), edited(logits, rows.edits)
    logits = logits.clone()
    scales = np.zeros(len(orders))
    for place, (row, order) in enumerate(orders.items()):
        knobs, values = all_knobs[row], work[row]
        is_bad = not bool(logits[row].amax().isfinite() & values.amax().isfinite())
        if is_bad or knobs["inverse_temperature"] == math.inf:
            continue
        ids, scales[place] = narrowed(values, knobs, order)
        left = torch.full_like(logits[row], -torch.inf).index_copy_(0, ids, logits[row][ids])
        logits[row] = left
    return logits, scales


def narrowed(values: Tensor, knobs: dict[str, Any], order: Sequence[str]) -> tuple[Tensor, float]:
    """Apply one row's steps.

    Args:
        values: [V] fp32, finite or -infinity, not all the latter.

    Returns:
        The ids of the tokens that are left, and the factor of their values before the draw: the
            inverse of the temperature.
    """
    scale = 1.0
    ids = (values > -torch.inf).nonzero().flatten()
    values = values[ids]
    for name in order:
        if name == "temperature":
            scale = reference.dynamic_scale(values, knobs)
            continue
        if name == "top_k" and 0 < knobs["top_k"] < len(ids):  # sorting all of them takes long
            few = values >= values.topk(knobs["top_k"]).values[-1]
            ids, values = ids[few], values[few]
        left = _left_by(name, values, scale, knobs)
        ids, values = ids[left], values[left]
    return ids, scale


def _left_by(name: str, values: Tensor, scale: float, knobs: dict[str, Any]) -> Tensor:
    """Return the places of the values, all finite, that a step leaves."""
    if name == "top_n_sigma":
        return (reference.near_peak(values, knobs["top_n_sigma"]) > -torch.inf).nonzero().flatten()
    places = torch.arange(len(values), device=values.device)
    if name != "min_p":  # which is the same in any order
        places = (values + 0.0).sort(descending=True, stable=True).indices
    scores = reference.scaled_scores(values, values.max(), scale)[places]
    kept = reference.scaled_weights(scores, len(values))
    _STEPS[name](kept, scores, knobs)
    return places[kept > 0].sort().values
