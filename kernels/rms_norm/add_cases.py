"""Inputs for `add_rms_norm`: those of `rms_norm` with a residual stream."""

import torch
from torch import Tensor

from kernels.rms_norm import cases
from kernels.rms_norm.cases import BENCHMARKS, CASES, COMPILED, Case

__all__ = ["BENCHMARKS", "CASES", "COMPILED", "TOLERANCE", "make_inputs", "outputs"]

TOLERANCE = cases.TOLERANCE | {
    # The stream is rounded before it is normalised, by up to 2^-8 and 2^-11 of each number.
    torch.bfloat16: 4.5e-3,
    torch.float16: 6e-4,
}


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    inputs = cases.make_inputs(case, dtype, device)
    return inputs | {"residual": cases.rows(case, dtype, device)}


def outputs(result: Tensor, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return (result, inputs["residual"])
