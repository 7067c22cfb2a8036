"""Logits as the ops on whole rows of them read memory."""

from torch import Tensor

from kernels import native


def contiguous_rows(logits: Tensor) -> Tensor:
    """[R, V] with V contiguous, of a type that kernels read; if it is so, the same tensor."""
    if logits.dtype not in native.DTYPES:
        logits = logits.float()
    return logits if logits.stride(1) == 1 else logits.contiguous()
