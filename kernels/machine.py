"""The resources of this machine that matter to kernels, in words, for tables and reports."""

import os
import platform
from pathlib import Path

import torch

from kernels import _triton, building, isa, native

CPU_FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_bf16", "amx_int8"),
)
"""The flags of /proc/cpuinfo that the C++ operations use or that interest a reader."""


def cpu_name() -> str:
    """Return the processor's own name."""
    return isa.cpuinfo().get("model name", platform.processor() or platform.machine())


def cpu_flags() -> list[str]:
    """Return the flags of `CPU_FLAGS` that this processor has."""
    return [flag for flag in CPU_FLAGS if flag in isa.features()]


def num_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def last_level_cache_bytes() -> int:
    """Return the size of the CPU's last-level cache; 32 MiB where the system does not state it."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]])
    return max(sizes, default=32 << 20)


def gpu_name() -> str | None:
    """Return the name of the first NVIDIA GPU with its compute capability, or None."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (sm_{major}{minor})"


def facts() -> dict[str, str]:
    """Return the facts that decide which implementations run, by heading."""
    return {
        "CPU": f"{cpu_name()}, {num_cores()} cores, {' '.join(cpu_flags()) or 'no vector flags'}",
        "C++": _cpp(),
        "GPU": gpu_name() or "none from NVIDIA",
        "Triton": _triton.triton.__version__ if _triton.AVAILABLE else "not installed",
        "torch": torch.__version__,
    }


def _cpp() -> str:
    lack = native.missing()
    if lack is not None:
        return f"{lack}; slower PyTorch operations run instead"
    flags = [flag for flag in building.flags() if flag.startswith(("-O", "-m"))]
    maker = "compiled already" if building.prebuilt() else building.compiler_name()
    return f"{maker}, {isa.chosen()}: {' '.join(flags)}"
