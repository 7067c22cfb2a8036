"""Dequantises some columns of the weight at a time, for products with plain weights."""

from collections.abc import Iterator

from torch import Tensor

from kernels.linear_w4a16.reference import dequantize
from kernels.native_recording import refuse_recording


def dequantized_columns(
    qweight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group_size: int,
    g_idx: Tensor | None,
    step: int,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of at most `step` outputs, each with its weight, [K, step] fp32.

    Raises:
        NotRecordable: this thread is recording.
    """
    refuse_recording("a recording would keep weights that are unpacked for one product")
    for start in range(0, qweight.shape[1], step):
        part = slice(start, start + step)
        zero = None if zeros is None else zeros[:, part]
        yield part, dequantize(qweight[:, part], scales[:, part], zero, group_size, g_idx)
