"""Compiles every Triton kernel for NVIDIA's chips, on a machine that may have none.

`python -m kernels.compile` takes the variants that each `<op>/triton.py` lists, compiles what it
has not compiled before, and writes what they need to docs/kernels.md. It fails if one spills
registers, needs more shared memory than a block has, or was to use tensor cores and does not.
"""

import argparse
import collections
import concurrent.futures
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from kernels import _triton
from kernels._triton import Variant
from kernels.chip import CHIPS, KIB, Chip
from kernels.compiled_kernel import CompiledKernel, cached, compiled
from kernels.document import Section, table
from kernels.native import KERNELS

MAX_VARIANTS = 150
"""Per chip: what compiles in some minutes on two cores."""
SECTION = "compiled"


@dataclass(frozen=True, slots=True)
class Job:
    """One variant for one chip."""

    op: str
    index: int
    """In the list of the op's variants."""
    variant: Variant
    chip: Chip

    @property
    def name(self) -> str:
        """In messages."""
        kernel = self.variant.kernel.__name__
        return f"{self.op} {kernel} ({self.variant.name}) on {self.chip.name}"


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: all is well; 1: a kernel is at fault; 2: there is nothing to compile with."""
    options = _parser().parse_args(arguments)
    if not _triton.AVAILABLE or _triton.triton.knobs.runtime.interpret:
        sys.stderr.write("kernels.compile needs Triton, and its interpreter switched off\n")
        return 2
    start = time.monotonic()
    jobs = list(all_jobs(options.op or op_folders()))
    results, faults = _run(jobs, options.jobs)
    faults += too_many(jobs) + same_name(jobs)
    for job in jobs:
        if job.name in results:
            faults += [f"{job.name}: {f}" for f in results[job.name].faults(job.variant, job.chip)]
    faults = sorted(faults)
    if not faults and not options.op:
        faults = _documented(jobs, results, only_check=options.check)
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    seconds = time.monotonic() - start
    sys.stdout.write(
        f"{len(jobs)} compilations of {len({(j.op, j.index) for j in jobs})} variants, "
        f"{len(faults)} faults, {seconds:.0f} s\n"
    )
    return int(bool(faults))


def op_folders() -> list[str]:
    """Ops that have Triton kernels."""
    return sorted(path.parent.name for path in KERNELS.glob("*/triton.py"))


def all_jobs(ops: Iterable[str]) -> Iterable[Job]:
    """Each variant of these ops for each chip that runs it."""
    for op in ops:
        for index, variant in enumerate(_variants(op)):
            for chip in CHIPS:
                if chip.capability in variant.capabilities:
                    yield Job(op, index, variant, chip)


def too_many(jobs: list[Job]) -> list[str]:
    """A message for each chip that has more variants than it may."""
    counts = {chip.name: sum(job.chip is chip for job in jobs) for chip in CHIPS}
    return [
        f"{name} has {count} variants, at most {MAX_VARIANTS} are allowed"
        for name, count in counts.items()
        if count > MAX_VARIANTS
    ]


def same_name(jobs: list[Job]) -> list[str]:
    """A message for each pair of jobs that the page could not tell apart."""
    counts = collections.Counter(job.name for job in jobs)
    return [f"{name}: two variants have this name" for name, n in counts.items() if n > 1]


def compiled_table(jobs: list[Job], results: dict[str, CompiledKernel]) -> str:
    """What each variant needs on each chip, as the page shows it."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for job in jobs:
        # A name may stand for another variant on another chip.
        key = (job.op, job.variant.kernel.__name__.strip("_"), job.variant.name)
        row = rows.setdefault(key, [*key, *["-"] * len(CHIPS)])
        row[len(key) + CHIPS.index(job.chip)] = _cell(results[job.name], job.chip)
    columns = ["op", "kernel", "variant", *(f"{chip.name}:" for chip in CHIPS)]
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
    """Write the page's section, or say whether it is another."""
    section = Section(SECTION)
    version = f"Triton {_triton.triton.__version__}"
    text = f"\n{version}.\n\n{compiled_table(jobs, results)}\n"
    if not only_check:
        section.write(text)
        return []
    if f"\n{version}.\n" not in section.read():
        sys.stdout.write(f"docs/kernels.md is of another release than {version}: not compared\n")
        return []
    if text != section.read():
        return ["docs/kernels.md is not current: run `make kernels-compile`"]
    return []


def _run(jobs: list[Job], num_processes: int) -> tuple[dict[str, CompiledKernel], list[str]]:
    """Results by name of the job, and what could not be compiled."""
    results = {job.name: found for job in jobs if (found := cached(job.variant, job.chip))}
    missing = [job for job in jobs if job.name not in results]
    faults: list[str] = []
    if not missing:
        return results, faults
    # A fork would inherit locks that torch's threads hold.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_processes, context) as pool:
        running = {
            pool.submit(_compile, job.op, job.index, CHIPS.index(job.chip)): job for job in missing
        }
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


def _compile(op: str, index: int, chip: int) -> tuple[CompiledKernel, float]:
    """In a process of the pool, where a kernel must be found anew: it cannot be sent."""
    start = time.monotonic()
    result = compiled(_variants(op)[index], CHIPS[chip])
    return result, time.monotonic() - start


def _variants(op: str) -> list[Variant]:
    module = importlib.import_module(f"kernels.{op}.triton")
    listed: list[Variant] = module.variants()
    return listed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels.compile", description=__doc__)
    parser.add_argument("op", nargs="*", help="folders; by default all, and the page is written")
    parser.add_argument(
        "--check", action="store_true", help="do not write docs/kernels.md, say if it is current"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes; by default one per core"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
