"""Inputs for `geglu`."""

import torch

from kernels.shared import gated_cases
from kernels.shared.gated_cases import SLACK, Case

__all__ = ["BENCHMARKS", "CASES", "SLACK", "TOLERANCE", "make_inputs"]

TOLERANCE = gated_cases.TOLERANCE | {torch.float32: 2e-6}

CASES = (
    Case("shapes", 1024, 256),
    Case("sd15", 65, 1280),
    Case("odd", 63, 257),
    Case("one_element", 3, 1),
    Case("no_tokens", 0, 64),
    Case("saturated", 4, 64, scale=50.0),
)
BENCHMARKS = {
    "cpu": (Case("shapes 32 rows", 2048, 256), Case("sd15 2 rows", 2048, 1280)),
    "cuda": (Case("sd15 8 rows", 32768, 1280), Case("sdxl 8 rows", 32768, 2560)),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    up_gate = torch.randn(case.num_tokens, 2 * case.size, device=device)
    up_gate[:, case.size :] *= case.scale
    return {"up_gate": up_gate.to(dtype)}
