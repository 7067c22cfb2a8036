"""Logits in the memory layout that ops on whole rows read."""

from torch import Tensor

from kernels import native


def contiguous_rows(logits: Tensor) -> Tensor:
    """Return [R, V] with V contiguous, of a type that kernels read, or the same tensor if it is so
    already."""
    if logits.dtype not in native.DTYPES:
        logits = logits.float()
    return logits if logits.stride(1) == 1 else logits.contiguous()
