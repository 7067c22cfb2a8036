"""Inputs for `add_rms_norm`: those of `rms_norm` with a residual stream."""

import torch
from torch import Tensor

from kernels.rms_norm import cases
from kernels.rms_norm.cases import BENCHMARKS, CASES, TOLERANCE, Case

__all__ = ["BENCHMARKS", "CASES", "TOLERANCE", "make_inputs", "outputs"]


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    inputs = cases.make_inputs(case, dtype, device)
    return inputs | {"residual": cases.rows(case, dtype, device)}


def outputs(result: Tensor, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return (result, inputs["residual"])
