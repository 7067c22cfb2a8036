"""Which device the model runs on, and what it offers."""

import os
from typing import Literal

import torch

from engine.config import CpuIsa, Device, MachineFacts
from engine.errors import ModelLoadError
from engine.runtime.cpu_quota import cpu_quota
from engine.runtime.memory import available_host_memory
from engine.runtime.threads import cores_to_compute
from kernels import isa

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

PACKED_KV_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""By `kv_cache_dtype`; under its other names the cache is in the model's dtype."""


def torch_dtype(name: str) -> torch.dtype:
    """`bfloat16`, `float16` or `float32` as torch knows it."""
    return DTYPES[name]


def machine_facts(wanted: Device) -> MachineFacts:
    """What sizing needs to know of this machine.

    Raises:
        ModelLoadError: `cuda` is asked for and there is none.
    """
    device = choose_device(wanted)
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else available_host_memory()
    return MachineFacts(device=device, num_cores=num_usable_cores(), free_memory_bytes=free)


def choose_cpu_isa(wanted: CpuIsa) -> None:
    """Have the C++ operations compiled for it.

    Raises:
        ModelLoadError: this processor cannot run that.
    """
    try:
        isa.choose(wanted)
    except ValueError as error:
        raise ModelLoadError(f"cpu_isa {error}; use auto", param="cpu_isa") from None


def num_usable_cores() -> int:
    """Cores to compute on: those that this process may run on, within a container's quota."""
    return cores_within(len(os.sched_getaffinity(0)), cpu_quota())


def cores_within(cores: int, quota: float | None) -> int:
    """Whole cores of a quota, without what HTTP gets. More threads than that would use the quota
    up, and all would stand still until the next period."""
    return cores if quota is None else min(cores, cores_to_compute(max(1, int(quota))))


def choose_device(wanted: Device) -> Literal["cpu", "cuda"]:
    """The one that is wanted, or that there is. A worker sees no GPU but its own.

    Raises:
        ModelLoadError: a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if wanted.startswith("cuda") and not has_gpu:
        raise ModelLoadError(
            f"device {wanted} was asked for and torch sees no such NVIDIA GPU; install a CUDA "
            f"build of torch or use --device cpu"
        )
    return "cpu" if wanted == "cpu" or not has_gpu else "cuda"
