"""Compiles every Triton kernel for NVIDIA's chips, on a machine that may have none.

`python -m kernels.tools.compile` records each op's launches for the cases that its `cases.py` lists
(`COMPILED`, by default the benchmarks of GPUs), compiles those that are new, and writes their needs
to docs/kernels.md. It fails if a kernel does not compile, spills registers, needs more shared
memory than a block has, or should use tensor cores and does not. With `--check` nothing is compiled
if the page was written from the same sources, launches and chips.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import kernels
from kernels import _triton
from kernels.registry import Op
from kernels.shared.stages import dtype_name
from kernels.tools.chip import CHIPS, KIB, Chip
from kernels.tools.compiled_kernel import CompiledKernel, cache_path, cached, compiled
from kernels.tools.document import Section, table
from kernels.tools.launches import Launch, recorded

MAX_KERNELS = 150
"""The most kernels per chip, which compile in some minutes on two cores."""
SECTION = "compiled"
META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class Job:
    """One launch for one chip."""

    op: str
    case: str
    """The first case that launches it."""
    launch: Launch
    chip: Chip
    uses_tensor_cores: bool

    @property
    def name(self) -> str:
        """The job's name in messages."""
        return f"{self.op} {self.launch.name} ({self.case}) on {self.chip.name}"

    def faults(self, kernel: CompiledKernel) -> list[str]:
        """Describe the faults of the compiled kernel."""
        found = kernel.faults(self.chip, uses_tensor_cores=self.uses_tensor_cores)
        return [f"{self.name}: {fault}" for fault in found]


def main(arguments: list[str] | None = None) -> int:
    """Run the program; exit with 1 if a kernel is at fault, and with 2 if Triton cannot compile."""
    options = _parser().parse_args(arguments)
    if not _triton.AVAILABLE or _triton.triton.knobs.runtime.interpret:
        sys.stderr.write("kernels.tools.compile needs Triton with its interpreter switched off\n")
        return 2
    start = time.monotonic()
    jobs = list(all_jobs([op for op in kernels.OPS if not options.op or op.name in options.op]))
    if options.check and not options.op and is_current(jobs, Section(SECTION)):
        sys.stdout.write("docs/kernels.md is current; nothing is compiled\n")
        return 0
    results, faults = _run(jobs, options.jobs)
    faults += too_many(jobs) + same_name(jobs)
    for job in jobs:
        if job.name in results:
            faults += job.faults(results[job.name])
    faults = sorted(faults)
    if not faults and not options.op:
        faults = _documented(jobs, results, only_check=options.check)
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    seconds = time.monotonic() - start
    sys.stdout.write(
        f"{len(jobs)} compilations for {len(CHIPS)} chips, {len(faults)} faults, {seconds:.0f} s\n"
    )
    return int(bool(faults))


def all_jobs(ops: Iterable[Op[..., Any]]) -> Iterator[Job]:
    """Yield each launch of these ops that shares its code with no earlier one, for each chip."""
    for chip in CHIPS:
        seen: set[str] = set()
        for op in ops:
            if "triton" not in op.implementations():
                continue
            for case, launch in _launches(op, chip):
                if launch.key not in seen:
                    seen.add(launch.key)
                    module = sys.modules[launch.module]
                    tensor_cores = launch.name in getattr(module, "TENSOR_CORES", ())
                    yield Job(op.name, case, launch, chip, tensor_cores)


def _launches(op: Op[..., Any], chip: Chip) -> Iterator[tuple[str, Launch]]:
    """Yield the names of cases with their launches."""
    implementation = op.implementations()["triton"]
    dtypes = getattr(op.cases, "COMPILED_DTYPES", (torch.bfloat16,))
    for case in getattr(op.cases, "COMPILED", op.cases.BENCHMARKS["cuda"]):
        for dtype in dtypes:
            name = case.name + (f", {dtype_name(dtype)}" if len(dtypes) > 1 else "")
            with recorded(chip.capability) as launches:
                inputs = op.cases.make_inputs(case, dtype, META)
                if implementation.supports(**inputs):
                    implementation.function(**inputs)
            for launch in launches:
                yield name, launch


def too_many(jobs: list[Job]) -> list[str]:
    """Return a message for each chip that has more kernels than allowed."""
    counts = {chip.name: sum(job.chip is chip for job in jobs) for chip in CHIPS}
    return [
        f"{name} has {count} kernels; the limit is {MAX_KERNELS}"
        for name, count in counts.items()
        if count > MAX_KERNELS
    ]


def same_name(jobs: list[Job]) -> list[str]:
    """Return a message for each pair of jobs that the page could not tell apart."""
    counts = collections.Counter(job.name for job in jobs)
    return [f"{name}: two kernels have this name" for name, n in counts.items() if n > 1]


def is_current(jobs: list[Job], section: Section) -> bool:
    """Whether the section was written, without a fault, from these jobs and by this Triton."""
    return section.read().endswith(_origin(jobs))


def _origin(jobs: list[Job]) -> str:
    """Return the section's last line, a hash of everything that decides what kernels become and
    what is a fault."""
    facts = [
        (job.name, cache_path(job.launch, job.chip).name, job.chip, job.uses_tensor_cores)
        for job in jobs
    ]
    return f"\nFrom `{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}`.\n\n"


def compiled_table(jobs: list[Job], results: dict[str, CompiledKernel]) -> str:
    """Return the table of each kernel's needs on each chip, as the page shows it."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for job in jobs:
        # On another chip the same name may stand for another tile.
        key = (job.op, job.launch.name.strip("_"), job.case)
        row = rows.setdefault(key, [*key, *["-"] * len(CHIPS)])
        row[len(key) + CHIPS.index(job.chip)] = _cell(results[job.name], job.chip)
    columns = ["op", "kernel", "case", *(f"{chip.name}:" for chip in CHIPS)]
    return table(columns, list(rows.values()))


def _cell(kernel: CompiledKernel, chip: Chip) -> str:
    resident = chip.resident_warps(
        registers=kernel.registers,
        shared_bytes=kernel.shared_bytes,
        num_warps=kernel.num_warps,
    )
    numbers = [
        str(kernel.num_warps),
        str(kernel.registers),
        f"{kernel.shared_bytes / KIB:.1f}",
        f"{100 * resident / chip.max_warps:.0f} %",
    ]
    return " · ".join([*numbers, *filter(None, [kernel.tensor_cores])])


def _documented(
    jobs: list[Job], results: dict[str, CompiledKernel], *, only_check: bool
) -> list[str]:
    """Write the page's section, or say whether it is out of date."""
    section = Section(SECTION)
    version = f"Triton {_triton.triton.__version__}"
    text = f"\n{version}.\n\n{compiled_table(jobs, results)}"
    if not only_check:
        section.write(text + _origin(jobs))
        return []
    if f"\n{version}.\n" not in section.read():
        sys.stdout.write(f"docs/kernels.md is of another release than {version}; not compared\n")
        return []
    # Comments move the lines of kernels, so the origin differs although the compiled kernels do
    # not.
    if section.read().partition("\nFrom ")[0].rstrip("\n") != text.rstrip("\n"):
        return ["docs/kernels.md is not current: run `make kernels-compile`"]
    return []


def _run(jobs: list[Job], num_processes: int) -> tuple[dict[str, CompiledKernel], list[str]]:
    """Return results by the job's name, and messages about jobs that could not be compiled."""
    results = {job.name: found for job in jobs if (found := cached(job.launch, job.chip))}
    missing = [job for job in jobs if job.name not in results]
    faults: list[str] = []
    if not missing:
        return results, faults
    # A fork would inherit locks that torch's threads hold.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_processes, context) as pool:
        running = {pool.submit(_compile, job.launch, CHIPS.index(job.chip)): job for job in missing}
        for done, future in enumerate(concurrent.futures.as_completed(running), start=1):
            job = running[future]
            try:
                results[job.name], seconds = future.result()
            except Exception as error:
                faults.append(f"{job.name}: does not compile: {error}")
            else:
                sys.stdout.write(f"[{done}/{len(missing)}] {job.name}: {seconds:.1f} s\n")
                sys.stdout.flush()
    return results, faults


def _compile(launch: Launch, chip: int) -> tuple[CompiledKernel, float]:
    """Compile one job in a process of the pool."""
    start = time.monotonic()
    result = compiled(launch, CHIPS[chip])
    return result, time.monotonic() - start


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels.tools.compile", description=__doc__)
    parser.add_argument(
        "op", nargs="*", help="names of operations; by default all, and the page is written"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="do not write docs/kernels.md; say whether it is current",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count(),
        help="number of processes; by default one per core",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
