"""`python -m kernels`: which implementation of each op runs on this machine, and why.

Asked with a typical call: the op's first benchmark, in bf16, on the GPU if there is one.
"""

import argparse
import sys
from typing import Any

import torch

import kernels
from kernels import cache_folder, isa, machine
from kernels.refusal import refusal
from kernels.registry import Op

IN_RESERVE = "in reserve"


def main(arguments: list[str] | None = None) -> int:
    """Print what the machine offers and a line per op. Exit code 2: it lacks what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m kernels", description=__doc__)
    cache_folder.add_argument(parser)
    isa.add_argument(parser)
    options = parser.parse_args(arguments)
    cache_folder.use_cache_folder(options.kernels_dir)
    try:
        isa.choose(options.cpu_isa)
    except ValueError as problem:
        sys.stderr.write(f"cpu_isa {problem}; use auto\n")
        return 2
    for heading, fact in machine.facts().items():
        sys.stdout.write(f"{heading:<8}{fact}\n")
    rows = [("op", "runs", "others"), *(_row(op) for op in kernels.OPS)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    sys.stdout.write("\n")
    for name, runs, others in rows:
        line = f"{name:<{widths[0]}}  {runs:<{widths[1]}}  {others}"
        sys.stdout.write(f"{line.rstrip()}\n")
    return 0


def _row(op: Op[..., Any]) -> tuple[str, str, str]:
    has_gpu = torch.cuda.is_available() and op.cases.BENCHMARKS["cuda"]
    device = torch.device("cuda" if has_gpu else "cpu")
    case = op.cases.BENCHMARKS[device.type][0]
    inputs = op.cases.make_inputs(case, torch.bfloat16, device)
    chosen, _ = op.choice(**inputs)
    others = {
        name: IN_RESERVE if one.supports(**inputs) else refusal(name, inputs.values())
        for name, one in op.implementations().items()
        if name != chosen
    }
    return op.name, chosen, "; ".join(f"{name}: {why}" for name, why in others.items())


if __name__ == "__main__":
    sys.exit(main())
