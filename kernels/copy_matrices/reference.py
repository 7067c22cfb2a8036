"""The definition, one matrix after the other."""

from collections.abc import Sequence

from torch import Tensor


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
    first_wrong = -1
    for index, (out, source) in enumerate(zip(outs, sources, strict=True)):
        out[: len(source)] = source
        out[len(source) :] = 0
        if first_wrong < 0 and not out.isfinite().all():
            first_wrong = index
    return first_wrong
