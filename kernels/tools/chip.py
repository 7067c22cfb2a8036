"""NVIDIA chips that kernels are compiled for, and how many warps of a kernel fit on one."""

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """Limits of a streaming multiprocessor (CUDA C++ Programming Guide, compute capabilities)."""

    capability: int
    shared_bytes: int
    max_shared_bytes_per_block: int
    max_warps: int = 64
    max_blocks: int = 32
    registers: int = 65536

    @property
    def name(self) -> str:
        return f"sm_{self.capability}"

    def resident_warps(self, *, registers: int, shared_bytes: int, num_warps: int) -> int:
        """Estimate the warps that run at a time, from registers per thread and shared memory per
        block.

        Registers come in units of 256 per warp, from one of four files; shared memory in units of
        128 bytes, and the driver takes 1 KiB of it for each block.
        """
        registers_per_warp = _rounded_up(max(registers, 1) * 32, 256)
        warps_by_registers = 4 * (self.registers // 4 // registers_per_warp)
        shared_per_block = _rounded_up(shared_bytes, 128) + KIB
        blocks = min(
            self.max_blocks,
            self.max_warps // num_warps,
            warps_by_registers // num_warps,
            self.shared_bytes // shared_per_block,
        )
        return blocks * num_warps


CHIPS = (
    Chip(capability=80, shared_bytes=164 * KIB, max_shared_bytes_per_block=163 * KIB),
    Chip(capability=90, shared_bytes=228 * KIB, max_shared_bytes_per_block=227 * KIB),
    Chip(capability=100, shared_bytes=228 * KIB, max_shared_bytes_per_block=227 * KIB),
)
"""A100, H100 and B200."""


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
