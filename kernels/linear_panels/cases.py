"""Inputs for `linear_panels`: every format, model shapes, all heights of tiles."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from kernels.linear_gguf.cases import random_weight
from kernels.linear_gguf.quant_type import GGUFType
from kernels.linear_panels.formats import WIDE
from kernels.linear_panels.gguf import panels_from_gguf
from kernels.linear_panels.panels import Codes, Meaning, PanelFormat, Panels, pack
from kernels.linear_panels.quantize import panels_from_floats
from kernels.shared.work import Work, product_work

TOLERANCE = {
    # Sums in fp32 of up to 14336 products, in another order.
    torch.float32: 2e-5,
    # Weights are rounded to x's type before they are multiplied; see `linear_gguf`.
    torch.bfloat16: 1.6e-2,
    torch.float16: 2e-3,
}
SLACK = {"cpu": {torch.bfloat16: 2.4e-2}}
"""Activations may become integers of one or two digits, see `digit_activations`."""


@dataclass(frozen=True)
class Case:
    """`rows` times an [`outputs`, `inputs`] weight."""

    name: str
    quant_type: GGUFType | None
    """The type of the weights; None for plain weights that are rounded to 8 bits or have the format
    `form`."""
    rows: int
    outputs: int
    inputs: int
    bias: bool = False
    strided: bool = False
    """Whether rows of x are views of wider ones."""
    int8_activations: bool = False
    fp32_out: bool = False
    form: PanelFormat | None = None
    """A format that is none of GGUF's types."""


_WIDE = (
    *(Case(f"{name}_one_row", None, 1, 48, 512, form=one) for name, one in WIDE.items()),
    *(Case(f"{name}_rows", None, 19, 37, 768, bias=True, form=one) for name, one in WIDE.items()),
)
_FLOATS = (
    *(Case(f"{one.name.lower()}_one_row", one, 1, 48, 512) for one in GGUFType),
    *(Case(f"{one.name.lower()}_rows", one, 19, 37, 768, bias=True) for one in GGUFType),
    Case("smollm2_gate_up", GGUFType.Q4_1, 2, 3072, 576),
    Case("smollm2_down", GGUFType.Q4_1, 33, 576, 1536),
    Case("smollm2_logits", GGUFType.Q8_0, 1, 1024, 576, fp32_out=True),
    Case("llama3_down", GGUFType.Q4_K, 1, 65, 14336),
    Case("rounded", None, 5, 100, 576, bias=True),
    Case("one_block", GGUFType.Q5_1, 3, 1, 32),
    Case("strided", GGUFType.Q4_0, 17, 33, 96, strided=True),
    Case("no_rows", GGUFType.Q8_0, 0, 33, 64),
)
CASES = (
    *_FLOATS,
    *_WIDE,
    *(replace(case, name=f"{case.name}_int8", int8_activations=True) for case in _FLOATS),
    *(
        Case(f"tile_of_{rows}_int8", GGUFType.Q4_1, rows, 40, 96, int8_activations=True)
        for rows in range(2, 10)
    ),
)
_SIZES = {"gate_up": (16384, 2048), "down": (2048, 8192)}
"""The sizes of Llama 3.2 1B."""
BENCHMARKS: dict[str, tuple[Case, ...]] = {
    "cpu": (
        Case("smollm2 gate_up 1 q4_1", GGUFType.Q4_1, 1, 3072, 576),
        Case("smollm2 gate_up 32 q4_1", GGUFType.Q4_1, 32, 3072, 576),
        Case("smollm2 gate_up 512 q4_1", GGUFType.Q4_1, 512, 3072, 576),
        Case("smollm2 gate_up 1 q4_1, int8", GGUFType.Q4_1, 1, 3072, 576, int8_activations=True),
        Case(
            "smollm2 gate_up 512 q4_1, int8", GGUFType.Q4_1, 512, 3072, 576, int8_activations=True
        ),
        Case("smollm2 logits 1 q8_0", GGUFType.Q8_0, 1, 49152, 576, fp32_out=True),
        Case("smollm2 logits 32 q8_0", GGUFType.Q8_0, 32, 49152, 576, fp32_out=True),
        Case("llama3_8b o 1 q4_k", GGUFType.Q4_K, 1, 4096, 4096),
        Case("llama3_8b o 1 q6_k", GGUFType.Q6_K, 1, 4096, 4096),
        *(
            Case(f"llama3.2_1b {layer} {rows} {one.name.lower()}", one, rows, *_SIZES[layer])
            for layer, one in (
                ("gate_up", GGUFType.Q4_0),
                ("gate_up", GGUFType.Q4_K),
                ("down", GGUFType.Q6_K),
                ("gate_up", GGUFType.Q8_0),
            )
            for rows in (1, 8, 109)
        ),
    ),
    "cuda": (),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    width = case.inputs * 2 if case.strided else case.inputs
    x = torch.randn(case.rows, width, device=device).to(dtype)[:, : case.inputs]
    if case.rows > 1:
        # A row of zeros has no largest magnitude to round by.
        x[1] = 0
    return {
        "x": x,
        "panels": _panels(case),
        "bias": torch.randn(case.outputs, device=device) if case.bias else None,
        "int8_activations": case.int8_activations,
        "fp32_out": case.fp32_out,
    }


def _panels(case: Case) -> Panels:
    if case.form is not None:
        return pack(random_codes(case.form, case.outputs, case.inputs))
    if case.quant_type is None:
        return panels_from_floats(torch.randn(case.outputs, case.inputs) / case.inputs**0.5)
    weight = random_weight(case.quant_type, case.outputs, case.inputs)
    return panels_from_gguf(weight, case.quant_type)


def random_codes(form: PanelFormat, outputs: int, inputs: int) -> Codes:
    """Make the codes of a weight whose products with random rows are near one."""
    codes = torch.randint(1 << form.bits, (outputs, inputs), dtype=torch.uint8)
    if form.meaning == Meaning.FP8:
        codes[codes & 127 == 127] = 0  # NaN
    groups = (outputs, inputs // form.group)
    whole = Codes(format=form, codes=codes, scales=torch.ones(groups), mins=torch.zeros(groups))
    middle = 0 if form.offset or form.meaning != Meaning.INTEGERS else 1 << form.bits - 1
    size = (whole.dequantised() - middle).square().mean().sqrt()
    scales = ((torch.rand(groups) + 0.5) / (size * inputs**0.5)).to(form.scale_dtype)
    mins = None
    if form.has_min:
        # A scale times an integer, exactly, as with weights that have zero points.
        scales = scales.half().to(form.scale_dtype)
        mins = -scales * torch.randint(middle // 2, 3 * middle // 2, groups)
    return Codes(format=form, codes=codes, scales=scales, mins=mins)


def work(inputs: dict[str, Any]) -> Work:
    """The work of one product; the weight is read with its padding."""
    return product_work(inputs, inputs["panels"].out_features)
