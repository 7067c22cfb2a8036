"""Applies edits to logits in PyTorch, with a few operations for all rows together."""

import torch
from torch import Tensor

from kernels.sample_tokens.rows import LogitEdits

_MAX_LOGIT = torch.finfo(torch.float32).max


def edited(logits: Tensor, edits: LogitEdits | None) -> Tensor:
    """Return a new fp32 [R, V] with the edits applied; without edits, perhaps `logits` itself.

    The host does not wait for the device.
    """
    if edits is None:
        return logits.float()
    work = logits.to(torch.float32, copy=True).contiguous()
    _penalise(work, edits)
    places = _rows_of(edits.offsets[1], edits.biased_ids), edits.biased_ids
    values = work[places].double()
    work[places] = _finite(values + edits.biases, values)
    work[_rows_of(edits.offsets[2], edits.forbidden_ids), edits.forbidden_ids] = -torch.inf
    if len(edits.masks):
        rows = _rows_of(edits.offsets[3], edits.masks)
        work[rows] = work[rows].masked_fill(_excluded(edits.masks, work.shape[1]), -torch.inf)
    return work


def _excluded(masks: Tensor, num_tokens: int) -> Tensor:
    """Return [M, V] bool: the tokens whose bit is not set. Uses a byte per token, as V may be
    large."""
    octets = masks.view(torch.uint8)
    places = torch.arange(8, dtype=torch.uint8, device=masks.device)
    bits = (octets.unsqueeze(-1) >> places) & 1
    return bits.flatten(1)[:, :num_tokens] == 0


def _penalise(work: Tensor, edits: LogitEdits) -> None:
    rows = _rows_of(edits.offsets[0], edits.penalised_ids)
    repetition, frequency, presence = edits.penalties[rows].unbind(1)
    values = work[rows, edits.penalised_ids].double()
    changed = torch.where(values > 0, values / repetition, values * repetition)
    changed -= edits.counts * frequency + (edits.counts > 0) * presence
    work[rows, edits.penalised_ids] = _finite(changed, values)


def _rows_of(offsets: Tensor, ids: Tensor) -> Tensor:
    """Return the row that each entry belongs to."""
    rows = torch.arange(len(offsets) - 1, device=ids.device)
    return rows.repeat_interleave(offsets.diff(), output_size=len(ids))


def _finite(changed: Tensor, before: Tensor) -> Tensor:
    """Convert to fp32 and keep it finite, except that a token that was impossible stays
    impossible."""
    clamped = changed.clamp(-_MAX_LOGIT, _MAX_LOGIT).to(torch.float32)
    return clamped.masked_fill(before == -torch.inf, -torch.inf)
