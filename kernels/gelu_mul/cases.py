"""Inputs for `gelu_mul`."""

from kernels.shared.gated_cases import SLACK, TOLERANCE, Case, make_inputs

__all__ = ["BENCHMARKS", "CASES", "SLACK", "TOLERANCE", "make_inputs"]

CASES = (
    Case("gemma3_270m_decode", 1, 2048),
    Case("gemma3_1b_batch", 33, 6912),
    Case("odd", 63, 257),
    Case("one_element", 3, 1),
    Case("no_tokens", 0, 64),
    Case("saturated", 4, 64, scale=50.0),
)
BENCHMARKS = {
    "cpu": (
        Case("gemma3_270m decode 1", 1, 2048),
        Case("gemma3_270m decode 32", 32, 2048),
        Case("gemma3_1b prompt 512", 512, 6912),
    ),
    "cuda": (
        Case("gemma3_1b decode 1", 1, 6912),
        Case("gemma3_1b decode 64", 64, 6912),
        Case("gemma3_1b prompt 4096", 4096, 6912),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""
