"""Low-rank updates of rows of many positions, each row with its own adapters, in one call."""

from collections.abc import Sequence

from torch import Tensor

from kernels.lora_rows import cases, cpu, reference
from kernels.lora_rows.updates import RowUpdates
from kernels.registry import op

__all__ = ["RowUpdates", "lora_rows"]


@op(cases)
def lora_rows(y: Tensor, x: Tensor, updates: Sequence[RowUpdates]) -> None:
    """Add `scale * (b @ (a @ x[row, p]))` to `y[row, p]`, for each update in turn.

    Args:
        y: [R, P, N], fp32, contiguous. Mutated.
        x: [R, P, K], fp32, contiguous.
        updates: updates of adapters of any ranks, each with its rows. A row may be in several.

    In the faster implementation a row's result depends only on the row and its updates.

    Paper: Hu et al. 2021, arXiv:2106.09685.
    """
    reference.lora_rows(y, x, updates)


lora_rows.implementation("cpu", supports=cpu.supports)(cpu.lora_rows)
