"""Inputs for `silu_mul`."""

from kernels.shared.gated_cases import SLACK, TOLERANCE, Case, make_inputs

__all__ = ["BENCHMARKS", "CASES", "SLACK", "TOLERANCE", "make_inputs"]

CASES = (
    Case("smollm2_decode", 1, 1536),
    Case("smollm2_batch", 33, 1536),
    Case("llama_chunk", 65, 14336),
    Case("odd", 63, 257),
    Case("one_element", 3, 1),
    Case("no_tokens", 0, 64),
    Case("saturated", 4, 64, scale=50.0),
    Case("apart", 9, 100, apart=True),
)
BENCHMARKS = {
    "cpu": (
        Case("smollm2 decode 1", 1, 1536),
        Case("smollm2 decode 32", 32, 1536),
        Case("llama3_8b prompt 512", 512, 14336),
    ),
    "cuda": (
        Case("llama3_8b decode 1", 1, 14336),
        Case("llama3_8b decode 64", 64, 14336),
        Case("llama3_8b prompt 4096", 4096, 14336),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""
