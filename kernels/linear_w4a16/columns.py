"""Some columns of the weight at a time, for products that multiply with a plain one."""

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
    """Which outputs, at most `step`, and their weight, [K, step] fp32.

    Raises:
        NotRecordable: this thread is recording.
    """
    refuse_recording("weights that are unpacked for one product would be kept by it")
    for start in range(0, qweight.shape[1], step):
        part = slice(start, start + step)
        zero = None if zeros is None else zeros[:, part]
        yield part, dequantize(qweight[:, part], scales[:, part], zero, group_size, g_idx)
