"""Draws one token per row from logits, with parameters of its own for each row."""

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

sample_tokens = op(cases)(reference.sample_tokens)
sample_tokens.implementation("cpu", supports=cpu.supports)(cpu.sample_tokens)

if _triton.AVAILABLE:
    from kernels.sample_tokens import triton

    sample_tokens.implementation("triton", supports=triton.supports)(triton.sample_tokens)
