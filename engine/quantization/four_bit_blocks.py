"""Weights of bitsandbytes' 4-bit numbers, in which runs share a largest magnitude.

`weight = magnitude * number`, where the number is one of 16 (`kernels.shared.four_bit_numbers`). On
a CPU they are rearranged into panels (`kernels.linear_panels`), which hold the same numbers; on a
GPU they keep the form that `kernels.linear_nf4` takes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from engine.quantization.int4_groups import GroupPanels, takes_panels
from engine.quantization.panels import PanelsState
from engine.quantization.products import PlainProduct, Product, ProductMethod, fp32_bias
from kernels import linear_nf4
from kernels.linear_nf4.reference import dequantize
from kernels.linear_panels.formats import FP4, NF4
from kernels.linear_panels.panels import BLOCK, Codes, chunks, pack_in_parts
from kernels.shared import four_bit_numbers

Numbers = Literal["nf4", "fp4"]
_PANELS = {"nf4": NF4, "fp4": FP4}
_NUMBERS = {"nf4": four_bit_numbers.NF4, "fp4": four_bit_numbers.FP4}
_SMALLEST = 1e-38
"""Smaller magnitudes are replaced by this one as divisors."""


@dataclass(frozen=True, slots=True)
class FourBitWeight:
    """Weights [N, K] in which each row begins with a new run."""

    packed: Tensor
    """[N, K / 2] uint8, two weights to a byte, the first in the upper half."""
    absmax: Tensor
    """[N, K / run] fp32."""
    numbers: Numbers
    bias: Tensor | None = None
    """fp32."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], 2 * self.packed.shape[1]

    @property
    def run(self) -> int:
        return self.shape[1] // self.absmax.shape[1]

    def arranged(self, device: torch.device, bias: Tensor | None) -> Product:
        """Arrange the weight on the device of its products; runs are a multiple of 32."""
        if device.type == "cpu" and takes_panels():
            panels = pack_in_parts(*self.shape, self._codes)
            return GroupPanels(PanelsState.of(panels, bias), None)
        return FourBitWeight(
            self.packed.to(device), self.absmax.to(device), self.numbers, fp32_bias(bias)
        )

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply [T, K] → [T, N]."""
        return linear_nf4(
            x,
            self.packed,
            self.absmax.flatten(),
            self.run,
            self.shape,
            self.bias,
            fp4=self.numbers == "fp4",
        )

    def multiply_in_fp32(self, x: Tensor) -> Tensor:
        return self.multiply(x.float())

    def _codes(self, some: slice) -> Codes:
        packed = self.packed[some]
        return Codes(
            format=_PANELS[self.numbers],
            codes=torch.stack([packed >> 4, packed & 15], 2).flatten(1),
            scales=self.absmax[some].repeat_interleave(self.run // BLOCK, 1),
        )


@dataclass(frozen=True, slots=True)
class FourBitMethod(ProductMethod):
    """A method for weights whose rows divide into 32; others are unpacked."""

    numbers: Numbers
    block_size: int
    """Weights that share a magnitude."""

    def run_of(self, in_features: int) -> int:
        """Return the weights of a row that share a magnitude: a block that reaches into the next
        row is cut."""
        return self.block_size if in_features % self.block_size == 0 else BLOCK

    def bits_per_weight(self, dtype_bytes: int) -> float:
        """Return the bits per weight; a GPU takes half a bit less."""
        if takes_panels():
            return _PANELS[self.numbers].bits_per_weight
        return 4 + 32 / self.block_size

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        bits = self.bits_per_weight(dtype_bytes)
        if in_features % BLOCK:
            bits = 8 * dtype_bytes
        elif not takes_panels():
            bits = 4 + 32 / self.run_of(in_features)
        return out_features * in_features * bits / 8

    def product(
        self,
        shards: list[tuple[Tensor, Tensor]],
        in_features: int,
        dtype: torch.dtype,
        device: torch.device,
        bias: Tensor | None,
    ) -> Product:
        """Build the product of neighbouring outputs.

        Args:
            shards: packed weights and magnitudes of neighbouring outputs, by blocks that may reach
                across rows.
        """
        if in_features % BLOCK:
            return PlainProduct.of(self.unpacked(shards, in_features, dtype).to(device), bias)
        run = self.run_of(in_features)
        packed = torch.cat([one.view(-1, in_features // 2) for one, _ in shards])
        absmax = torch.cat(
            [
                of_blocks.repeat_interleave(self.block_size // run)[: 2 * one.numel() // run]
                for one, of_blocks in shards
            ]
        )
        weight = FourBitWeight(packed, absmax.view(len(packed), -1), self.numbers)
        return weight.arranged(device, bias)

    def unpacked(
        self, shards: list[tuple[Tensor, Tensor]], in_features: int, dtype: torch.dtype
    ) -> Tensor:
        """Unpack the weights to [N, K], in new memory."""
        parts = []
        for packed, absmax in shards:
            # With an odd number of weights the last byte holds only one.
            num_outputs = 2 * packed.numel() // in_features
            shape = (num_outputs, in_features)
            fp4 = self.numbers == "fp4"
            parts.append(dequantize(packed, absmax, self.block_size, shape, fp4=fp4).to(dtype))
        return torch.cat(parts)


def rounded_to_4_bits(weight: Tensor, numbers: Numbers, block_size: int) -> tuple[Tensor, Tensor]:
    """Round weights to 4 bits as bitsandbytes does, bit for bit.

    Args:
        weight: [N, K], any float dtype, K a multiple of `block_size`.

    Returns:
        [N K / 2] uint8 and [N K / block_size] fp32, as `FourBitMethod.product` takes them.
    """
    table = torch.tensor(_NUMBERS[numbers])
    order = torch.argsort(table, stable=True)
    between = (table[order[:-1]] + table[order[1:]]) / 2
    packed, magnitudes = [], []
    for some in chunks(*weight.shape):
        blocks = weight[some].float().reshape(-1, block_size)
        absmax = blocks.abs().amax(1)
        scaled = (blocks * (1.0 / absmax.clamp(min=_SMALLEST))[:, None]).clamp_(-1, 1)
        codes = order.to(torch.uint8)[torch.bucketize(scaled, between)].view(-1, 2)
        packed.append(codes[:, 0] << 4 | codes[:, 1])
        magnitudes.append(absmax)
    return torch.cat(packed), torch.cat(magnitudes)
