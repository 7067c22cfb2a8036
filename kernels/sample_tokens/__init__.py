"""Draws one token per row from logits, with parameters of its own for each row."""

from torch import Tensor

from kernels import _triton
from kernels.registry import op
from kernels.sample_tokens import cases, cpu, reference
from kernels.sample_tokens.ordered import in_order
from kernels.sample_tokens.rows import (
    FINE,
    NO_TOKEN_LEFT,
    NOT_FINITE,
    PARAMETERS,
    EditLists,
    SampledTokens,
    SamplingRows,
    packed_row,
)

__all__ = [
    "FINE",
    "NOT_FINITE",
    "NO_TOKEN_LEFT",
    "PARAMETERS",
    "EditLists",
    "SampledTokens",
    "SamplingRows",
    "in_order",
    "packed_row",
    "sample_tokens",
]


@op(cases)
def sample_tokens(logits: Tensor, rows: SamplingRows) -> SampledTokens:
    """Draw one token per row.

    A row's steps, each on what the one before left:

        edits      penalties, biases, bans, masks (`kernels.sample_tokens.rows.LogitEdits`)
        greedy     temperature 0: the first maximum, and nothing else applies
        steps      `reference.STEPS`, one after the other: which tokens may be drawn
        draw       token i with probability w_i / sum(w): the least of E_i / w_i, where E_i is
                   exponentially distributed (the Gumbel-max trick without its outer logarithm)

    Every step keeps at least one token. The weights w are integers (`reference.py`) and E_i is a
    function of (seed, index, position, i) (`noise.py`), both free of library functions. So every
    implementation on every machine gives the same tokens, and a row's token depends on its own
    logits and parameters alone. No implementation but the reference sorts, and none but the
    reference waits for the device.

    Args:
        logits: [R, V], any float dtype, any strides, V below 2**31. Not changed.
        rows: parameters of the R rows, on logits' device.

    Returns:
        Tokens, or why a row has none; a bad row does not disturb the others.

    Paper: exponential races, Efraimidis and Spirakis 2006, doi:10.1016/j.ipl.2005.11.003. The steps
    name their own.
    """
    return reference.sample_tokens(logits, rows)


sample_tokens.implementation("cpu", supports=cpu.supports)(cpu.sample_tokens)

if _triton.AVAILABLE:
    from kernels.sample_tokens import triton

    sample_tokens.implementation("triton", supports=triton.supports)(triton.sample_tokens)
