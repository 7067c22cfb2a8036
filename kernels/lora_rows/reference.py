"""The definition, row by row."""

from collections.abc import Sequence

from torch import Tensor

from kernels.lora_rows.updates import RowUpdates


def lora_rows(y: Tensor, x: Tensor, updates: Sequence[RowUpdates]) -> None:
    """See `kernels.lora_rows`."""
    for update in updates:
        for row, scale in zip(update.rows.tolist(), update.scales.tolist(), strict=True):
            y[row] += scale * (x[row] @ update.a.T @ update.b.T)
