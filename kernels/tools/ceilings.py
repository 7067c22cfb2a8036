"""The best rates of this machine, measured: the denominator of every share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import machine
from kernels.tools.stopwatch import median_seconds

GPU_COPY_BYTES = 1 << 30
GEMM_SIZE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Rates in GB/s (read and written bytes both count) and GFLOP/s."""

    copy_one_thread: float
    """The rate of copies with one thread; on a GPU the same as with all."""
    copy: float
    read: float
    """The rate of reads, above `copy` where a write costs more than a read."""
    gemm_fp32: float
    gemm_bf16: float

    def gemm(self, dtype: torch.dtype) -> float:
        """Return the ceiling of matrix products of this type, in GFLOP/s."""
        return self.gemm_fp32 if dtype is torch.float32 else self.gemm_bf16


def cache_bytes(device: torch.device) -> int:
    """Return the size of the device's last-level cache."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return machine.last_level_cache_bytes()


def measure(device: torch.device) -> Ceilings:
    """Measure the ceilings, which takes a few seconds; nothing else should run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        copy_one_thread = _copy(device)
    finally:
        torch.set_num_threads(threads)
    return Ceilings(
        copy_one_thread=copy_one_thread,
        copy=_copy(device),
        read=_read(device),
        gemm_fp32=_gemm(torch.float32, device),
        gemm_bf16=_gemm(torch.bfloat16, device),
    )


def _copy(device: torch.device) -> float:
    source = _buffer(device)
    target = torch.empty_like(source)
    seconds = median_seconds(target.copy_, [{"other": source}], device)
    return 2 * _size(source) / seconds / 1e9


def _read(device: torch.device) -> float:
    source = _buffer(device)
    seconds = median_seconds(torch.sum, [{"input": source}], device)
    return _size(source) / seconds / 1e9


def _gemm(dtype: torch.dtype, device: torch.device) -> float:
    size = GEMM_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(torch.mm, [{"input": a, "mat2": b}], device) / 1e9


def _buffer(device: torch.device) -> Tensor:
    """Make a buffer of eight times the size of the last cache."""
    size = GPU_COPY_BYTES if device.type == "cuda" else 8 * cache_bytes(device)
    return torch.ones(size // 4, device=device)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
