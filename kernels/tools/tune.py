"""`python -m kernels.tools.tune [OP ...]`: measures how many stages suit this GPU and keeps the
result.

It runs each op's benchmark cases with each number of stages and keeps the fastest per kind of
launch (`kernels.shared.stages`). Nothing else should run at the same time.
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

import kernels
from kernels import _triton, cache_folder
from kernels.registry import Op
from kernels.shared import stages
from kernels.tools.stopwatch import median_seconds

CANDIDATES = (1, 2, 3, 4, 5, 6)
Run = Callable[[], Any]


def main(arguments: list[str] | None = None) -> int:
    """Tune the operations; exit with 2 if there is no GPU to measure on."""
    parser = argparse.ArgumentParser(prog="python -m kernels.tools.tune", description=__doc__)
    names = [op.name for op in kernels.OPS]
    parser.add_argument("op", nargs="*", help=f"by default all of {', '.join(names)}")
    cache_folder.add_argument(parser)
    options = parser.parse_args(arguments)
    cache_folder.use_cache_folder(options.kernels_dir)
    if not (_triton.AVAILABLE and torch.cuda.is_available()):
        sys.stderr.write("tuning needs an NVIDIA GPU and Triton; nothing was measured\n")
        return 2
    runs = [
        run for op in kernels.OPS if not options.op or op.name in options.op for run in runs_of(op)
    ]
    found = tune(runs, _seconds)
    for launch, best in sorted(found.items()):
        sys.stdout.write(f"{launch}: {best} stages\n")
    sys.stdout.write(f"written to {stages.save(found)}\n")
    return 0


def runs_of(op: Op[..., Any]) -> list[Run]:
    """Return the op's benchmark cases that its Triton implementation takes, on the GPU in bf16."""
    implementation = op.implementations().get("triton")
    if implementation is None:
        return []
    runs: list[Run] = []
    for case in op.cases.BENCHMARKS["cuda"]:
        inputs = op.cases.make_inputs(case, torch.bfloat16, torch.device("cuda"))
        if implementation.supports(**inputs):
            runs.append(functools.partial(implementation.function, **inputs))
    return runs


def tune(runs: Sequence[Run], seconds: Callable[[Run], float]) -> dict[str, int]:
    """Return the fastest number of stages per kind of launch, over the runs that make such
    launches.

    Args:
        seconds: returns the time of a run; infinity if it cannot be launched.
    """
    runs_by_launch: dict[str, list[Run]] = {}
    defaults: dict[str, int] = {}
    for run in runs:
        with stages.observed() as asked:
            run()
        for launch, default in asked.items():
            defaults[launch] = default
            runs_by_launch.setdefault(launch, []).append(run)
    return {
        launch: _fastest(launch, defaults[launch], of_launch, seconds)
        for launch, of_launch in runs_by_launch.items()
    }


def _fastest(
    launch: str, default: int, runs: Sequence[Run], seconds: Callable[[Run], float]
) -> int:
    """Return the number of stages with the least time; among equal ones the default."""
    times: dict[int, float] = {}
    for candidate in sorted(CANDIDATES, key=lambda c: c != default):
        with stages.trying(launch, candidate):
            times[candidate] = sum(seconds(run) for run in runs)
    return min(times, key=times.__getitem__)


def _seconds(run: Run) -> float:
    try:
        return median_seconds(run, [{}], torch.device("cuda"))
    except _triton.triton.runtime.errors.OutOfResources:
        return math.inf


if __name__ == "__main__":
    sys.exit(main())
