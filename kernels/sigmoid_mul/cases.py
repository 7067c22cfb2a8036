"""Inputs for `sigmoid_mul`."""

from kernels.shared.gated_cases import SLACK, TOLERANCE, Case, make_inputs

__all__ = ["BENCHMARKS", "CASES", "SLACK", "TOLERANCE", "make_inputs"]

CASES = (
    Case("qwen3_5_decode", 1, 4096),
    Case("batch", 33, 1536),
    Case("odd", 63, 257),
    Case("one_element", 3, 1),
    Case("no_tokens", 0, 64),
    Case("saturated", 4, 64, scale=50.0),
    Case("apart", 9, 100, apart=True),
)
BENCHMARKS = {
    "cpu": (Case("qwen3.5_4b decode 1", 1, 4096), Case("qwen3.5_4b prompt 512", 512, 4096)),
    "cuda": (Case("qwen3.5_4b decode 64", 64, 4096), Case("qwen3.5_4b prompt 4096", 4096, 4096)),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""
