"""Inputs for `linear_w8`: model shapes, odd sizes, strided rows, both kinds of activations."""

from dataclasses import dataclass
from typing import Any

import torch

from kernels.shared.linear_cases import LinearCase
from kernels.shared.tolerances import FLOATS, ROUNDED_SUMS
from kernels.shared.work import Work, product_work

# Sums in fp32 of up to 14336 products in another order; int8 weights are exact in every type.
TOLERANCE = dict.fromkeys(FLOATS, 2e-5)
SLACK = {
    # PyTorch rounds before it applies the scale and before it adds the bias, at up to 8.
    "composed": ROUNDED_SUMS,
}


@dataclass(frozen=True)
class Case(LinearCase):
    """A product with a weight of bytes."""

    int8_activations: bool = False


_CASES = (
    Case("smollm2_o", 1, 576, 576),
    Case("smollm2_o_batch", 33, 576, 576),
    Case("smollm2_down", 3, 576, 1536),
    Case("llama3_down", 2, 65, 14336),
    Case("odd", 7, 37, 131, bias=True),
    Case("many_rows", 129, 130, 320, bias=True),
    Case("one_of_each", 1, 1, 1),
    Case("strided", 17, 33, 96, strided=True),
    Case("no_rows", 0, 33, 64),
)
CASES = (
    *_CASES,
    *(
        Case(**{**vars(one), "name": f"{one.name}_int8", "int8_activations": True})
        for one in _CASES
    ),
)
BENCHMARKS = {
    "cpu": (
        Case("smollm2 gate_up 1", 1, 3072, 576),
        Case("smollm2 gate_up 32", 32, 3072, 576),
        Case("llama3_8b o 1", 1, 4096, 4096),
        Case("smollm2 gate_up 1, int8", 1, 3072, 576, int8_activations=True),
        Case("smollm2 gate_up 32, int8", 32, 3072, 576, int8_activations=True),
        Case("llama3_8b o 1, int8", 1, 4096, 4096, int8_activations=True),
    ),
    "cuda": (
        Case("llama3_8b gate_up 1", 1, 28672, 4096),
        Case("llama3_8b down 1", 1, 4096, 14336),
        Case("llama3_8b gate_up 64", 64, 28672, 4096),
        Case("llama3_8b gate_up 2048", 2048, 28672, 4096),
        Case("llama3_8b gate_up 1, int8", 1, 28672, 4096, int8_activations=True),
        Case("llama3_8b gate_up 2048, int8", 2048, 28672, 4096, int8_activations=True),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""
COMPILED = (
    *BENCHMARKS["cuda"],
    *(
        Case(
            f"llama3_8b {layer} {rows}{', int8' if rounded else ''}",
            rows,
            outputs,
            inputs,
            int8_activations=rounded,
        )
        for layer, outputs, inputs in (("gate_up", 28672, 4096), ("down", 4096, 14336))
        for rows in (1, 64, 2048)
        for rounded in (False, True)
    ),
)
"""Launches that `kernels.tools.compile` compiles ahead of time."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    x = case.make_x(dtype, device)
    if case.rows > 1:
        # A row of zeros has no largest magnitude to round by.
        x[1] = 0
    shape = (case.outputs, case.inputs)
    # Integers of root mean square 74, so that outputs stay near one.
    scale = (torch.rand(case.outputs, device=device) + 0.5) / (74 * case.inputs**0.5)
    return {
        "x": x,
        "weight": torch.randint(-128, 128, shape, dtype=torch.int8, device=device),
        "scale": scale,
        "bias": case.make_bias(dtype, device),
        "int8_activations": case.int8_activations,
    }


def work(inputs: dict[str, Any]) -> Work:
    """The work of one product; the weight is read in its packed form."""
    weight = inputs["weight"]
    return product_work(inputs, weight.shape[0])
