"""Times every op's implementations on real models' shapes, against what the machine can do.

`python -m kernels.tools.bench [OP ...]` first checks the implementations against the reference: an
op with a wrong implementation is not timed, and the exit code is 1. Nothing else should run at the
same time.

The inputs of a call that moves more than `IN_CACHE_BYTES` are used in turn with copies, in all
twice the size of the last cache, as with the layers of a model. Smaller inputs stay in the cache,
as they would in a model.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import kernels
from kernels.registry import Op
from kernels.shared.work import work_of
from kernels.tools import ceilings
from kernels.tools.check import Mismatch, check
from kernels.tools.document import Section
from kernels.tools.stopwatch import median_seconds
from kernels.tools.timing import Report, Timing

IN_CACHE_BYTES = 1 << 20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SECTION = "measured"


def main(arguments: list[str] | None = None) -> int:
    """Run the program; exit with 1 if a check failed."""
    options = _parser().parse_args(arguments)
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    start = time.monotonic()
    found = ceilings.measure(device)
    timings: list[Timing] = []
    red = 0
    for op in kernels.OPS:
        if options.op and op.name not in options.op:
            continue
        try:
            check_op(op, dtype, device)
        except Mismatch as mismatch:
            red += 1
            sys.stderr.write(f"not timed: {mismatch}\n")
            continue
        for timing in timings_of(op, dtype, device):
            timings.append(timing)
            sys.stdout.write(f"{'  '.join(filter(None, timing.cells(found, dtype)))}\n")
            sys.stdout.flush()
    report = Report(
        device=device.type,
        dtype=dtype,
        num_threads=torch.get_num_threads(),
        ceilings=found,
        timings=timings,
    )
    sys.stdout.write(report.markdown())
    seconds = time.monotonic() - start
    sys.stdout.write(f"{len(timings)} timings, {red} ops refused, {seconds:.0f} s\n")
    if options.json is not None:
        options.json.write_text(report.json())
    if options.write and not red:
        Section(SECTION).write(report.markdown())
    return int(bool(red))


def check_op(op: Op[..., Any], dtype: torch.dtype, device: torch.device) -> None:
    """Check everything that will be timed.

    Raises:
        Mismatch: the results of an implementation differ from the reference's.
    """
    for case in op.cases.BENCHMARKS[device.type]:
        inputs = op.cases.make_inputs(case, dtype, device)
        for name in _runners(op, inputs):
            check(op, name, case, dtype, device)


def timings_of(op: Op[..., Any], dtype: torch.dtype, device: torch.device) -> Iterator[Timing]:
    """Time each implementation that takes a case; the reference comes last."""
    for case in op.cases.BENCHMARKS[device.type]:
        yield from timings_of_case(op, case, dtype, device)


def timings_of_case(
    op: Op[..., Any], case: Any, dtype: torch.dtype, device: torch.device, only: str | None = None
) -> Iterator[Timing]:
    """Time the implementations that take a case, or `only` one of them."""
    inputs = op.cases.make_inputs(case, dtype, device)
    work = work_of(op, inputs, op.outputs(op.reference(**inputs), inputs))
    num_copies = 0
    if work.bytes > IN_CACHE_BYTES:
        num_copies = math.ceil(2 * ceilings.cache_bytes(device) / work.bytes)
    turns = [inputs, *(copy.deepcopy(inputs) for _ in range(num_copies))]
    for name, run in _runners(op, inputs).items():
        if only in (None, name):
            yield Timing(
                op=op.name,
                case=case.name,
                implementation=name,
                seconds=median_seconds(run, turns, device),
                bytes=work.bytes,
                flops=work.flops,
            )


def _runners(op: Op[..., Any], inputs: dict[str, object]) -> dict[str, Callable[..., Any]]:
    implementations = op.implementations().items()
    found = {name: one.function for name, one in implementations if one.supports(**inputs)}
    return found | {"reference": op.reference}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels.tools.bench", description=__doc__)
    names = [op.name for op in kernels.OPS]
    parser.add_argument("op", nargs="*", help=f"by default all of {', '.join(names)}")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="by default the GPU, if there is one",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--write", action="store_true", help="write the table into docs/kernels.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
