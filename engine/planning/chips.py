"""GPUs by name, with their memory, bandwidth and arithmetic. Imports no torch.

The sources are the makers' data sheets. The arithmetic is that of bf16 with fp32 sums and without
sparsity; data sheets of GPUs since Ampere often show twice as much.
"""

from dataclasses import dataclass

from engine.errors import InvalidParameter

MIB = 1 << 20
GIGA, TERA = 10**9, 10**12


@dataclass(frozen=True, slots=True)
class Chip:
    """The properties of a processor that limit a model's speed."""

    title: str
    memory_bytes: int
    bytes_per_s: float
    """The highest bandwidth of its memory."""
    flops: float
    """Multiplications and additions per second; a pair counts as two."""


def _gpu(title: str, mib: int, gb_per_s: int, tflops: float) -> Chip:
    return Chip(title, mib * MIB, gb_per_s * GIGA, tflops * TERA)


CHIPS = {
    "b200": _gpu("NVIDIA B200", 183359, 8000, 2250),
    "h200": _gpu("NVIDIA H200", 143771, 4800, 989),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 81559, 3350, 989),
    "h100-pcie": _gpu("NVIDIA H100 PCIe", 81559, 2000, 756),
    "a100": _gpu("NVIDIA A100-SXM4-80GB", 81920, 2039, 312),
    "a100-40": _gpu("NVIDIA A100-SXM4-40GB", 40960, 1555, 312),
    "l40s": _gpu("NVIDIA L40S", 46068, 864, 362),
    "l4": _gpu("NVIDIA L4", 23034, 300, 121),
    "a10": _gpu("NVIDIA A10", 23028, 600, 125),
    "a6000": _gpu("NVIDIA RTX A6000", 49140, 768, 155),
    "5090": _gpu("NVIDIA GeForce RTX 5090", 32607, 1792, 209.5),
    "4090": _gpu("NVIDIA GeForce RTX 4090", 24564, 1008, 165.2),
    "3090": _gpu("NVIDIA GeForce RTX 3090", 24576, 936, 71),
}
"""The chips by the names that `--gpu` takes. Their memory is what nvidia-smi shows."""


def chip_named(name: str) -> Chip:
    """The chip of a name.

    Raises:
        InvalidParameter: the table has no such GPU; the message names those that it has.
    """
    chip = CHIPS.get(name.lower())
    if chip is None:
        raise InvalidParameter(
            f"gpu is {name!r}; it must be one of {', '.join(CHIPS)}", param="gpu"
        )
    return chip
