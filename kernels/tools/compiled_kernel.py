"""One launch compiled for one chip, and the needs of its machine code, found without a GPU."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels import _triton
from kernels.cache_folder import cache_folder
from kernels.tools.chip import KIB, Chip
from kernels.tools.launches import Launch, target

FORMAT = 2
"""The version of the cached files; it goes up when a field changes its meaning."""

_TENSOR_CORES = re.compile(r"\b([HIBDQOF]G?MMA|UTC[A-Z]*MMA)\b")
"""Machine instructions of tensor cores: `HMMA` (sm_80), `HGMMA` (sm_90), `UTCHMMA` (sm_100) and
relatives."""
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledKernel:
    """The needs of a launch, read from the cubin."""

    registers: int
    """Registers per thread."""
    spilled_bytes: int
    """Bytes per thread in memory, because registers did not suffice."""
    shared_bytes: int
    """Bytes of shared memory per block."""
    num_warps: int
    """Warps per block."""
    tensor_cores: str = ""
    """Names of the instructions that use tensor cores; empty if none does."""

    def faults(self, chip: Chip, *, uses_tensor_cores: bool) -> list[str]:
        """Describe faults that would make the kernel slow or impossible to launch.

        Args:
            uses_tensor_cores: whether code without their instructions is a fault.
        """
        found = []
        if self.spilled_bytes:
            found.append(f"spills {self.spilled_bytes} bytes of registers per thread")
        if self.shared_bytes > chip.max_shared_bytes_per_block:
            found.append(
                f"needs {self.shared_bytes / KIB:.1f} KiB of shared memory; a block has "
                f"{chip.max_shared_bytes_per_block // KIB}"
            )
        if uses_tensor_cores and not self.tensor_cores:
            found.append("has no tensor-core instruction")
        return found


def cache_path(launch: Launch, chip: Chip) -> Path:
    """Return the path of the cached result, which changes with everything that it depends on."""
    parts = [
        FORMAT,
        _triton.triton.__version__,
        chip.capability,
        launch.kernel.cache_key,
        launch.key,
    ]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    return cache_folder() / f"triton-{key}.json"


def cached(launch: Launch, chip: Chip) -> CompiledKernel | None:
    """Return the result of an earlier run, or None."""
    try:
        return CompiledKernel(**json.loads(cache_path(launch, chip).read_text()))
    except FileNotFoundError:
        return None


def compiled(launch: Launch, chip: Chip) -> CompiledKernel:
    """Compile a launch and keep the result.

    Raises:
        Exception: any error that Triton raises for code that it cannot compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Triton keeps six files per kernel; only five numbers are of interest.
        _triton.triton.knobs.cache.dir = folder
        kernel = _triton.triton.compile(
            launch.source(), target=target(chip.capability), options=dict(launch.options)
        )
        result = _read(kernel, Path(folder))
    path = cache_path(launch, chip)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(dataclasses.asdict(result)))
    unfinished.replace(path)
    return result


def _read(kernel: Any, folder: Path) -> CompiledKernel:
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    usage = _USAGE.search(_dump("-res-usage", cubin))
    if usage is None:
        raise ValueError("cuobjdump does not say what the kernel uses")
    registers, stack, local = map(int, usage.groups())
    # Disassembling takes as long as compiling; code without `mma` in its PTX needs none.
    instructions: set[str] = set()
    if "mma" in kernel.asm["ptx"]:
        instructions.update(_TENSOR_CORES.findall(_dump("-sass", cubin)))
    return CompiledKernel(
        registers=registers,
        spilled_bytes=stack + local,
        shared_bytes=kernel.metadata.shared,
        num_warps=kernel.metadata.num_warps,
        tensor_cores=" ".join(sorted(instructions)),
    )


def _dump(option: str, cubin: Path) -> str:
    tool = _triton.triton.knobs.nvidia.cuobjdump.path
    done = subprocess.run(
        [tool, option, str(cubin)], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout
