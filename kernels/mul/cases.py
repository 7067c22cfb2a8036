"""Inputs for `mul`."""

import torch

from kernels.shared.gated_cases import Case
from kernels.shared.tolerances import FLOATS

CASES = (
    Case("lfm2_decode", 1, 2048),
    Case("lfm2_batch", 33, 2048),
    Case("odd", 63, 257),
    Case("one_element", 3, 1),
    Case("no_tokens", 0, 64),
)
BENCHMARKS = {
    "cpu": (Case("lfm2_1.2b decode 1", 1, 2048), Case("lfm2_1.2b prompt 512", 512, 2048)),
    "cuda": (),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""
TOLERANCE = dict.fromkeys(FLOATS, 0.0)


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    x, y = torch.randn(2, case.num_tokens, 3 * case.size, device=device).to(dtype)
    return {"x": x[:, case.size : 2 * case.size], "y": y[:, : case.size]}
