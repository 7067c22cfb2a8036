"""The definition, row by row."""

from collections.abc import Sequence

from torch import Tensor

from kernels.lora_rows.updates import RowUpdates


def lora_rows(y: Tensor, x: Tensor, updates: Sequence[RowUpdates]) -> None:
    """Add `scale * (b @ (a @ x[row, p]))` to `y[row, p]`, for each update in turn.

    Args:
        y: [R, P, N], fp32, contiguous. Mutated.
        x: [R, P, K], fp32, contiguous.
        updates: updates of adapters of any ranks, each with its rows. A row may be in several.

    In the faster implementation a row's result depends only on the row and its updates.

    Paper: Hu et al. 2021, arXiv:2106.09685.
    """
    for update in updates:
        for row, scale in zip(update.rows.tolist(), update.scales.tolist(), strict=True):
            y[row] += scale * (x[row] @ update.a.T @ update.b.T)
