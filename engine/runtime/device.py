"""The device that a model runs on, and its resources."""

import os
from typing import Literal

import torch

from engine.contract.resolved_config import MachineFacts
from engine.contract.text_settings import OptimizeFor
from engine.contract.worker_settings import CpuIsa, Device
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
"""The dtypes of packed caches by `kv_cache_dtype`; other values keep the cache in the model's
dtype."""


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype for `bfloat16`, `float16` or `float32`."""
    return DTYPES[name]


def machine_facts(wanted: Device) -> MachineFacts:
    """Return the facts about this machine that sizing needs.

    Raises:
        ModelLoadError: `cuda` is wanted and there is no GPU.
    """
    device = choose_device(wanted)
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else available_host_memory()
    return MachineFacts(device=device, num_cores=num_usable_cores(), free_memory_bytes=free)


def choose_cpu_isa(wanted: CpuIsa, optimize_for: OptimizeFor = "throughput") -> None:
    """Set the instruction set for which C++ operations are compiled.

    Args:
        optimize_for: `latency` leaves a matrix unit unused, where single rows would wait for it.

    Raises:
        ModelLoadError: this processor cannot run it.
    """
    try:
        isa.choose(wanted, matrix_unit=optimize_for == "throughput")
    except ValueError as error:
        raise ModelLoadError(f"cpu_isa {error}; use auto", param="cpu_isa") from None


def num_usable_cores() -> int:
    """Return the number of cores that this process may compute on, within a container's quota."""
    return cores_within(len(os.sched_getaffinity(0)), cpu_quota())


def cores_within(cores: int, quota: float | None) -> int:
    """Return the whole cores of a quota, without the one for HTTP. More threads would use the quota
    up, and all would stand still until the next period."""
    return cores if quota is None else min(cores, cores_to_compute(max(1, int(quota))))


def choose_device(wanted: Device) -> Literal["cpu", "cuda"]:
    """Return the wanted device, or the available one. A worker sees no GPU but its own.

    Raises:
        ModelLoadError: a GPU is wanted and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if wanted.startswith("cuda") and not has_gpu:
        raise ModelLoadError(
            f"device is {wanted}, but torch finds no such NVIDIA GPU; install a CUDA "
            f"build of torch or use --device cpu"
        )
    return "cpu" if wanted == "cpu" or not has_gpu else "cuda"
