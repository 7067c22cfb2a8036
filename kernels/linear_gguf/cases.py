"""Inputs for `linear_gguf`: every type; random bytes with scales that keep outputs near one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.linear_gguf.dequantize import dequantize
from kernels.linear_gguf.fields import fields_apart
from kernels.linear_gguf.quant_type import BLOCKS, GGUFType, row_bytes
from kernels.shared.tolerances import ROUNDED_WEIGHTS
from kernels.shared.work import Work, product_work

TOLERANCE = ROUNDED_WEIGHTS


@dataclass(frozen=True)
class Case:
    """`rows` times a [`outputs`, `inputs`] weight."""

    name: str
    quant_type: GGUFType
    rows: int
    outputs: int
    inputs: int
    bias: bool = False
    strided: bool = False
    """Whether rows of x are views of wider ones."""
    int8_activations: bool = False


CASES = (
    *(Case(f"{one.name.lower()}_one_row", one, 1, 48, 512) for one in GGUFType),
    *(Case(f"{one.name.lower()}_rows", one, 19, 37, 768, bias=True) for one in GGUFType),
    *(
        Case(f"{one.name.lower()}_int8", one, 5, 37, 512, bias=True, int8_activations=True)
        for one in GGUFType
    ),
    Case("smollm2_o", GGUFType.Q4_1, 2, 576, 576),
    Case("smollm2_o_int8", GGUFType.Q4_1, 33, 576, 576, int8_activations=True),
    Case("smollm2_down", GGUFType.Q8_0, 1, 576, 1536),
    Case("llama3_down", GGUFType.Q4_K, 1, 31, 14336),
    Case("llama3_down_int8", GGUFType.Q6_K, 1, 31, 14336, int8_activations=True),
    Case("many_rows", GGUFType.Q4_K, 129, 130, 256),
    Case("one_block", GGUFType.Q5_1, 3, 1, 32),
    Case("one_block_int8", GGUFType.Q5_1, 3, 1, 32, int8_activations=True),
    Case("strided", GGUFType.Q4_0, 17, 33, 96, strided=True),
    Case("strided_int8", GGUFType.Q4_0, 17, 33, 96, strided=True, int8_activations=True),
    Case("no_rows", GGUFType.Q8_0, 0, 33, 64),
    Case("no_rows_int8", GGUFType.Q8_0, 0, 33, 64, int8_activations=True),
)
REFUSED = {"triton": {case.name for case in CASES if case.int8_activations}}
"""Cases that an implementation leaves to the next."""
BENCHMARKS = {
    "cpu": (
        Case("smollm2 gate_up Q4_1 1", GGUFType.Q4_1, 1, 3072, 576),
        Case("smollm2 gate_up Q4_1 32", GGUFType.Q4_1, 32, 3072, 576),
        Case("llama3_8b o Q4_K 1", GGUFType.Q4_K, 1, 4096, 4096),
        *(
            Case(f"{name}, int8", one, rows, outputs, size, int8_activations=True)
            for name, one, rows, outputs, size in (
                ("smollm2 gate_up Q4_1 1", GGUFType.Q4_1, 1, 3072, 576),
                ("smollm2 gate_up Q4_1 32", GGUFType.Q4_1, 32, 3072, 576),
                ("smollm2 gate_up Q8_0 1", GGUFType.Q8_0, 1, 3072, 576),
                ("llama3_8b o Q4_K 1", GGUFType.Q4_K, 1, 4096, 4096),
                ("llama3_8b o Q6_K 1", GGUFType.Q6_K, 1, 4096, 4096),
            )
        ),
    ),
    "cuda": (
        Case("llama3_8b gate_up Q4_K 1", GGUFType.Q4_K, 1, 28672, 4096),
        Case("llama3_8b down Q4_K 1", GGUFType.Q4_K, 1, 4096, 14336),
        Case("llama3_8b gate_up Q4_K 64", GGUFType.Q4_K, 64, 28672, 4096),
        Case("llama3_8b gate_up Q4_K 2048", GGUFType.Q4_K, 2048, 28672, 4096),
        Case("llama3_8b gate_up Q6_K 1", GGUFType.Q6_K, 1, 28672, 4096),
        Case("llama3_8b gate_up Q8_0 1", GGUFType.Q8_0, 1, 28672, 4096),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""
COMPILED = (
    *(Case(f"llama3_8b down {one.name} 1", one, 1, 4096, 14336) for one in GGUFType),
    Case("llama3_8b down Q4_K 64", GGUFType.Q4_K, 64, 4096, 14336),
    Case("llama3_8b down Q4_K 2048", GGUFType.Q4_K, 2048, 4096, 14336),
    Case("llama3_8b down Q6_K 2048", GGUFType.Q6_K, 2048, 4096, 14336),
    *BENCHMARKS["cuda"],
)
"""Launches that `kernels.tools.compile` compiles ahead of time."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    width = case.inputs * 2 if case.strided else case.inputs
    x = torch.randn(case.rows, width, device=device).to(dtype)[:, : case.inputs]
    if case.rows > 1:
        # A row of zeros has no largest magnitude to round by.
        x[1] = 0
    return {
        "x": x,
        "weight": _weight(case, device),
        "quant_type": case.quant_type,
        "bias": torch.randn(case.outputs, device=device).to(dtype) if case.bias else None,
        "int8_activations": case.int8_activations,
    }


def _weight(case: Case, device: torch.device) -> Tensor:
    if device.type == "meta":
        shape = (case.outputs, row_bytes(case.quant_type, case.inputs))
        return torch.empty(shape, dtype=torch.uint8, device=device)
    rows = random_weight(case.quant_type, case.outputs, case.inputs)
    return fields_apart(rows, case.quant_type).to(device)


def random_weight(quant_type: GGUFType, outputs: int, inputs: int) -> Tensor:
    """Make a random weight [outputs, bytes] uint8 as in a file, on the CPU.

    Weights have all signs and a root mean square of 1 / sqrt(inputs). All bytes are random, then
    the scales are set: small ones are subnormal, as in real files.
    """
    packed = torch.randint(256, (outputs, row_bytes(quant_type, inputs)), dtype=torch.uint8)
    block = BLOCKS[quant_type]
    blocks = packed.view(-1, block.num_bytes)
    _set_scales(blocks, block.scale_offsets, torch.ones(()))
    size = dequantize(packed, quant_type).square().mean().sqrt()
    _set_scales(blocks, block.scale_offsets, 1 / (size * inputs**0.5))
    return packed


def _set_scales(blocks: Tensor, offsets: tuple[int, ...], size: Tensor) -> None:
    for offset in offsets:
        sign = torch.randint(2, (len(blocks), 1)) * 2 - 1
        scale = (torch.rand(len(blocks), 1) + 0.5) * sign * size
        blocks[:, offset : offset + 2] = scale.to(torch.float16).view(torch.uint8)


def work(inputs: dict[str, Any]) -> Work:
    """The work of one product; the weight is read in its packed form."""
    weight = inputs["weight"]
    return product_work(inputs, weight.shape[0])
