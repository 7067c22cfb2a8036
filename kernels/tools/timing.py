"""The speed of one implementation on one case, and its presentation."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kernels import machine
from kernels.tools.ceilings import Ceilings
from kernels.tools.document import table

COLUMNS = ["op", "case", "runs on", "time:", "GB/s:", "of copy:", "GFLOP/s:", "of GEMM:"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The median time of one implementation's call, and its work."""

    op: str
    case: str
    implementation: str
    seconds: float
    bytes: int
    flops: int

    def cells(self, ceilings: Ceilings, dtype: torch.dtype) -> list[str]:
        """Return the table's cells, one per column."""
        memory = self.bytes / self.seconds / 1e9
        arithmetic = self.flops / self.seconds / 1e9
        return [
            self.op,
            self.case,
            self.implementation,
            _duration(self.seconds),
            f"{memory:.1f}",
            f"{memory / ceilings.copy:.0%}",
            f"{arithmetic:.1f}" if self.flops else "",
            f"{arithmetic / ceilings.gemm(dtype):.0%}" if self.flops else "",
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All timings of one run and the ceilings to compare them with."""

    device: str
    dtype: torch.dtype
    num_threads: int
    ceilings: Ceilings
    timings: Sequence[Timing]

    def markdown(self) -> str:
        """Return the section of docs/kernels.md."""
        c = self.ceilings
        place = machine.gpu_name() if self.device == "cuda" else machine.facts()["CPU"]
        rows = [timing.cells(c, self.dtype) for timing in self.timings]
        return (
            f"\n{place}; {self.num_threads} threads, torch {torch.__version__}, "
            f"{str(self.dtype).removeprefix('torch.')}.\n"
            f"Ceilings: copy {c.copy_one_thread:.1f} GB/s with one thread and {c.copy:.1f} with "
            f"all, read {c.read:.1f};\nproducts of matrices {c.gemm_fp32:.0f} GFLOP/s in fp32 and "
            f"{c.gemm_bf16:.0f} in bf16.\n\n{table(COLUMNS, rows)}\n"
        )

    def json(self) -> str:
        """Return everything, for later comparisons."""
        content: dict[str, Any] = {
            "machine": machine.facts(),
            "device": self.device,
            "dtype": str(self.dtype).removeprefix("torch."),
            "num_threads": self.num_threads,
            "ceilings": asdict(self.ceilings),
            "timings": [asdict(timing) for timing in self.timings],
        }
        return json.dumps(content, indent=1) + "\n"


def _duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.2f} ms"
