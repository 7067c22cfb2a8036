"""Weights of 8-bit floats (float8_e4m3fn) that share scales by rectangles.

`weight = number * scale`. On a CPU they are rearranged into panels (`kernels.linear_panels`), which
hold the same numbers; activations keep their 16 bits. Elsewhere they are unpacked: products of
8-bit floats, which newer GPUs have, are not used.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.quantization.int4_groups import GroupPanels, takes_panels
from engine.quantization.panels import PanelsState
from engine.quantization.products import PlainProduct, Product
from kernels.linear_panels.formats import FP8
from kernels.linear_panels.panels import BLOCK, Codes, chunks, pack_in_parts


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """Weights [N, K] with scales per output."""

    numbers: Tensor
    """[N, K] float8_e4m3fn."""
    scales: Tensor
    """[N, ceil(K / width)] fp32."""
    width: int
    """Inputs that share a scale."""

    @classmethod
    def of_shards(cls, shards: list[tuple[Tensor, Tensor]], height: int, width: int) -> "Fp8Weight":
        """Build a weight from shards.

        Args:
            shards: numbers [N, K] and scales of neighbouring outputs, one for each rectangle of
                `height` outputs and `width` inputs.
        """
        scales = [its.float()[torch.arange(len(numbers)) // height] for numbers, its in shards]
        return cls(torch.cat([numbers for numbers, _ in shards]), torch.cat(scales), width)

    def arranged(self, device: torch.device, dtype: torch.dtype, bias: Tensor | None) -> Product:
        """Arrange the weight on the device of its products, for activations in `dtype`."""
        num_outputs, size = self.numbers.shape
        if device.type == "cpu" and takes_panels() and has_panels(size, self.width):
            panels = pack_in_parts(num_outputs, size, self._codes)
            return GroupPanels(PanelsState.of(panels, bias), None)
        return PlainProduct.of(self.dequantised(dtype).to(device), bias)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Compute the plain weight [N, K] in new memory, without the bias."""
        num_outputs, size = self.numbers.shape
        weight = torch.empty(num_outputs, size, dtype=dtype)
        places = torch.arange(size) // self.width
        for some in chunks(num_outputs, size):
            weight[some] = self.numbers[some].float() * self.scales[some][:, places]
        return weight

    def _codes(self, some: slice) -> Codes:
        numbers = self.numbers[some]
        places = torch.arange(0, numbers.shape[1], BLOCK) // self.width
        return Codes(
            format=FP8, codes=numbers.view(torch.uint8), scales=self.scales[some][:, places]
        )


def has_panels(in_features: int, width: int) -> bool:
    """Whether 32 neighbours share a scale, which panels require."""
    return in_features % BLOCK == 0 and (width % BLOCK == 0 or width >= in_features)


def bits_of_fp8(in_features: int, width: int, device: str, dtype_bytes: int) -> float:
    """Return bits per weight in memory, scales included.

    Args:
        device: `cpu` or `cuda`.
        dtype_bytes: bytes of an activation.
    """
    packed = device == "cpu" and takes_panels() and has_panels(in_features, width)
    return FP8.bits_per_weight if packed else 8 * dtype_bytes
