"""Prints what the Triton launchers launch at real models' shapes and no variant stands for.

To be run in a process of its own, where kernels are not interpreted. Nothing is computed: tensors
have no memory, and a launch only tells its arguments.
"""

import importlib
import json
import sys
from typing import Any

import torch

import kernels
from kernels import _triton, transfer
from kernels.compile import op_folders
from kernels.linear_gguf import cases as gguf_cases
from kernels.linear_gguf.quant_type import row_bytes

TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
META = torch.device("meta")

Launch = dict[str, str]
"""Kernel and options, constants and types of pointers, all in words."""


def described(
    kernel: Any, arguments: dict[str, Any], types: dict[str, str], warps: int, stages: int
) -> Launch:
    """`arguments` are constants or None, `types` those of tensors."""
    constants = {name: repr(getattr(value, "value", value)) for name, value in arguments.items()}
    options = {"kernel": kernel.__name__, "num_warps": str(warps), "num_stages": str(stages)}
    return constants | types | options


def listed(op_name: str) -> list[Launch]:
    """The variants of an op's folder."""
    module = importlib.import_module(f"kernels.{op_name}.triton")
    return [
        described(
            v.kernel,
            dict(v.constants),
            {name: kind for name, kind in v.signature.items() if kind.startswith("*")},
            v.num_warps,
            v.num_stages,
        )
        for v in module.variants()
    ]


def launched(function: Any, inputs: dict[str, Any]) -> list[Launch]:
    """What a call launches."""
    found: list[Launch] = []

    def run(kernel: Any, *args: Any, **kwargs: Any) -> None:
        given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        constants, types = {}, {}
        for parameter in kernel.params:
            value = given.get(parameter.name, parameter.default)
            if isinstance(value, torch.Tensor):
                types[parameter.name] = TYPES[value.dtype]
            elif parameter.is_constexpr or value is None:
                constants[parameter.name] = value
        found.append(
            described(
                kernel.fn,
                constants,
                types,
                kwargs.get("num_warps", 4),
                kwargs.get("num_stages", 3),
            )
        )

    _triton.triton.runtime.jit.JITFunction.run = run
    function(**inputs)
    return found


def compare() -> tuple[int, list[str]]:
    """Number of launches, and a line for each that no variant stands for."""
    number, unlisted = 0, []
    variants = [launch for name in op_folders() for launch in listed(name)]
    for op in kernels.OPS:
        implementation = op.implementations().get("triton")
        if implementation is None:
            continue
        for case in op.cases.BENCHMARKS["cuda"]:
            inputs = op.cases.make_inputs(case, torch.bfloat16, META)
            if not implementation.supports(**inputs):
                continue
            for launch in launched(implementation.function, inputs):
                number += 1
                if launch not in variants:
                    of_kernel = [v for v in variants if v["kernel"] == launch["kernel"]]
                    unlisted.append(f"{op.name}, {case.name}: {_difference(launch, of_kernel)}")
    return number, unlisted


def _difference(launch: Launch, variants: list[Launch]) -> str:
    """To the variant that is most like it."""
    if not variants:
        return f"{launch['kernel']} has no variant"
    nearest = max(variants, key=lambda v: len(launch.items() & v.items()))
    names = sorted(name for name, _ in launch.items() ^ nearest.items())
    there = {name: launch.get(name) for name in names}
    return f"{launch['kernel']} with {there}, not {[nearest.get(name) for name in names]}"


def main() -> None:
    """Print both."""
    _triton.runs_on = lambda *tensors: True
    # Random scales of 100 million weights take seconds.
    gguf_cases.random_weight = lambda kind, outputs, inputs: torch.empty(
        (outputs, row_bytes(kind, inputs)), dtype=torch.uint8, device=META
    )
    # There is no pinned memory without a GPU.
    packed = transfer._packed
    transfer._packed = lambda arrays, pin: packed(arrays, pin=False)
    launches, unlisted = compare()
    json.dump({"launches": launches, "unlisted": unlisted}, sys.stdout, indent=1)
