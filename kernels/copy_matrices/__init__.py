"""Many small matrices copied, each into the first rows of another one, in one call."""

from collections.abc import Sequence

from torch import Tensor

from kernels.copy_matrices import cases, cpu, reference
from kernels.registry import op

__all__ = ["copy_matrices"]


@op(cases)
def copy_matrices(outs: Sequence[Tensor], sources: Sequence[Tensor]) -> int:
    """Copy each of `sources` to the first rows of its out, in its type, and zeros to the others.

    Args:
        outs: [R, ...], floats, or bytes that are copied as they are. Mutated.
        sources: [r, ...], r <= R, floats if the outs are. None shares memory with an out.

    Returns:
        Index of the first out with a number that is not finite, such as one too large for its type;
        -1: there is none.
    """
    return reference.copy_matrices(outs, sources)


copy_matrices.implementation("cpu", supports=cpu.supports)(cpu.copy_matrices)
