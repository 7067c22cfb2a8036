"""Copies of many small matrices, each to the first rows of another one, in one call."""

from collections.abc import Sequence

from torch import Tensor

from kernels.copy_matrices import cases, cpu, reference
from kernels.registry import op

__all__ = ["copy_matrices"]


@op(cases)
def copy_matrices(outs: Sequence[Tensor], sources: Sequence[Tensor]) -> int:
    """Copy each source to the first rows of its out, in the out's dtype, and fill the other rows
    with zeros.

    Args:
        outs: [R, ...], floats, or bytes that are copied unchanged. Mutated.
        sources: [r, ...], r <= R, floats if the outs are. None shares memory with an out.

    Returns:
        Index of the first out with a number that is not finite, such as one too large for its type;
            -1 if there is none.
    """
    return reference.copy_matrices(outs, sources)


copy_matrices.implementation("cpu", supports=cpu.supports)(cpu.copy_matrices)
