"""Lets Triton's front end read every kernel as the ops' cases launch it; no GPU involved.

To be run in a process of its own, where kernels are not interpreted.
"""

from collections.abc import Iterator
from typing import Any

import torch
from triton._C.libtriton import ir
from triton.compiler.compiler import make_backend

import kernels
from kernels.registry import Op
from kernels.tools.launches import Launch, recorded, target

CAPABILITY = 80
DTYPES = (torch.float32, torch.bfloat16)
META = torch.device("meta")


def launches() -> dict[str, tuple[str, Launch]]:
    """Return one launch for each specialisation: which arguments there are, of what types, and
    which are 1.

    Values of declared constants, such as tiles, make no difference to what can be read.
    """
    found = {}
    for op in kernels.OPS:
        for case, launch in launches_of(op):
            declared = {p.name for p in launch.kernel.params if p.is_constexpr}
            kinds = {
                name: kind.removesuffix("/16")
                for name, kind in launch.arguments.items()
                if name not in declared
            }
            found.setdefault(f"{launch.name} {kinds}", (f"{op.name}, {case}", launch))
    return found


def launches_of(op: Op[..., Any]) -> Iterator[tuple[str, Launch]]:
    implementation = op.implementations().get("triton")
    for case in op.cases.CASES if implementation else ():
        for dtype in DTYPES:
            with recorded(CAPABILITY) as found:
                inputs = op.cases.make_inputs(case, dtype, META)
                assert implementation is not None
                if implementation.supports(**inputs):
                    implementation.function(**inputs)
            for launch in found:
                yield f"{case.name} {dtype}", launch


def lower(launch: Launch) -> None:
    """Lower a launch. Raises whatever Triton raises for code that it cannot read."""
    chip = target(CAPABILITY)
    backend, context = make_backend(chip), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options(dict(launch.options))
    launch.source().make_ir(
        chip,
        options,
        backend.get_codegen_implementation(options),
        backend.get_module_map(),
        context,
    )


def lowered() -> dict[str, Any]:
    """Lower all of them. Returns how many there are, and what is wrong with them."""
    faults = []
    found = launches()
    for name, launch in found.values():
        try:
            lower(launch)
        except Exception as error:
            faults.append(f"{name}: {launch.name} {launch.arguments}: {error} {error.__cause__}")
    return {"launches": len(found), "faults": faults}
