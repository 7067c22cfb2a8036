"""Inputs for `conv3x3`: layers of networks that enlarge or draw images, odd sizes and numbers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import isa
from kernels.conv3x3.convolution import Convolution
from kernels.shared.tolerances import FLOATS
from kernels.shared.work import Work, num_bytes

TESTED_DTYPES = (torch.float32, torch.bfloat16)
# The transformed patches and kernels are up to 10 times as large as the results, and so are their
# rounding errors. In bf16 they are twice as large, and a result is the sum of 9 of 16.
TOLERANCE = dict.fromkeys(FLOATS, 1e-4) | {torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Case:
    """`rows` maps of `height` x `width` cells."""

    name: str
    rows: int
    inputs: int
    outputs: int
    height: int
    width: int
    is_slice: bool = False
    """Whether inputs and outputs are channels of one map."""
    has_addend: bool = False
    has_slopes: bool = True
    is_channels_last: bool = True
    """Whether inputs are in channels-last layout."""


CASES = (
    Case("esrgan_grows", 1, 96, 32, 18, 21, is_slice=True),
    Case("esrgan_block", 1, 192, 64, 12, 9, has_addend=True, has_slopes=False),
    Case("compact", 2, 64, 64, 17, 16),
    Case("first", 2, 3, 64, 10, 11),
    Case("last", 2, 64, 3, 13, 7, has_slopes=False),
    Case("odd", 5, 21, 45, 7, 5, has_addend=True, is_slice=True),
    Case("channels_first", 3, 32, 16, 4, 5, is_channels_last=False),
    Case("one_cell", 3, 16, 16, 1, 1),
    Case("one_column", 2, 5, 17, 9, 1, has_addend=True),
    Case("one_channel", 1, 1, 1, 6, 30),
    Case("no_rows", 0, 8, 8, 4, 4),
)
BENCHMARKS: dict[str, tuple[Case, ...]] = {
    "cpu": (
        Case("compact 128 px", 1, 64, 64, 128, 128),
        Case("esrgan grows 128 px", 1, 128, 32, 128, 128, is_slice=True),
        Case("shapes 4x4 cells", 16, 128, 128, 4, 4, has_slopes=False),
        Case("shapes 16x16 cells", 16, 64, 64, 16, 16, has_slopes=False),
        Case("sd15 64x64 cells", 2, 320, 320, 64, 64, has_slopes=False),
    ),
    "cuda": (),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op, in bf16 where such numbers are multiplied in pairs, else in
    fp32."""
    weight = torch.randn(case.outputs, case.inputs, 3, 3).mul_((9 * case.inputs) ** -0.5)
    slopes = torch.rand(case.outputs) if case.has_slopes else 1.0
    if dtype is not torch.bfloat16 or not isa.multiplies_bf16():
        dtype = torch.float32
    whole = _map(case, case.inputs + case.outputs + 3).to(dtype)
    x = whole[:, : case.inputs] if case.is_slice else _map(case, case.inputs).to(dtype)
    return {
        "x": x if case.is_channels_last else x.contiguous(),
        "convolution": Convolution.of(weight.to(dtype), torch.randn(case.outputs), slopes),
        "addend": _map(case, case.outputs).to(dtype) if case.has_addend else None,
        "scale": 0.2 if case.has_addend else 1.0,
        "out": whole[:, case.inputs : -3] if case.is_slice else None,
    }


def work(inputs: dict[str, Any]) -> Work:
    """The work of the definition, with the original weights."""
    x, weight = inputs["x"], inputs["convolution"].weight
    cells = x[:, 0].numel()
    written = x.itemsize * cells * len(weight)
    moved = x.nbytes + num_bytes((weight, inputs["addend"])) + written
    return Work(moved, 2 * weight.numel() * cells)


def _map(case: Case, channels: int) -> Tensor:
    numbers = torch.randn(case.rows, case.height, case.width, channels)
    return numbers.permute(0, 3, 1, 2)
