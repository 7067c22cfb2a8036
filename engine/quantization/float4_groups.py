"""Weights of 4-bit floats (E2M1) whose inputs share a scale in runs of 16 or 32.

`weight = scale * number`. On a CPU they are rearranged into panels (`kernels.linear_panels`), which
hold the same numbers; elsewhere they are unpacked.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.quantization.int4_groups import GroupPanels, check_finite, takes_panels
from engine.quantization.method import LinearPart
from engine.quantization.panels import PanelsState
from engine.quantization.products import PlainProduct, Product, ProductMethod
from kernels.linear_panels.formats import E2M1, E2M1_BY_16
from kernels.linear_panels.panels import BLOCK, Codes, PanelFormat, chunks, pack_in_parts

_POWERS = torch.tensor(
    [2.0 ** (exponent - 127) for exponent in range(255)] + [torch.nan], dtype=torch.float32
)
"""The factor that each stored exponent stands for."""


def powers_of_two(name: str, exponents: Tensor) -> Tensor:
    """Return the fp32 scales that stored exponents stand for.

    Raises:
        CorruptFile: one is not a number; the message names the tensor.
    """
    scales = _POWERS[exponents.int()]
    check_finite(name, scales)
    return scales


@dataclass(frozen=True, slots=True)
class Float4Weight:
    """Weights [N, K]."""

    packed: Tensor
    """[N, K / 2] uint8, two numbers to a byte, the first in the lower half."""
    scales: Tensor
    """[N, K / run] fp32; powers of two where a run has 32 inputs."""

    def arranged(self, device: torch.device, dtype: torch.dtype, bias: Tensor | None) -> Product:
        """Arrange the weight on the device of its products, for activations in `dtype`."""
        num_outputs, in_features = self.packed.shape[0], 2 * self.packed.shape[1]
        if device.type == "cpu" and takes_panels() and in_features % BLOCK == 0:
            panels = pack_in_parts(num_outputs, in_features, self._codes)
            return GroupPanels(PanelsState.of(panels, bias), None)
        return PlainProduct.of(self.dequantised(dtype).to(device), bias)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Compute the plain weight [N, K] in new memory, without the bias."""
        num_outputs, in_features = self.packed.shape[0], 2 * self.packed.shape[1]
        weight = torch.empty(num_outputs, in_features, dtype=dtype)
        for some in chunks(num_outputs, in_features):
            weight[some] = self._codes(some).dequantised()
        return weight

    def _codes(self, some: slice) -> Codes:
        packed, scales = self.packed[some], self.scales[some]
        codes = torch.stack([packed & 15, packed >> 4], 2).flatten(1)
        run = codes.shape[1] // scales.shape[1]
        form = form_of(run)
        return Codes(format=form, codes=codes, scales=scales.to(form.scale_dtype))


def form_of(run: int) -> PanelFormat:
    """Return the panel format for scales that `run` inputs share."""
    return E2M1 if run == BLOCK else E2M1_BY_16


@dataclass(frozen=True, slots=True, kw_only=True)
class Float4Method(ProductMethod):
    """The common part of such formats."""

    run: int = BLOCK
    """Inputs that share a scale."""
    device: str = "cpu"
    """The device of the weights, `cpu` or `cuda`."""

    @property
    def takes_plain_weights(self) -> bool:
        return False

    @abstractmethod
    def weight(self, part: LinearPart) -> Float4Weight:
        """Check loaded tensors and build the weight."""

    def process(self, part: LinearPart) -> Product:
        return self.weight(part).arranged(part.device, part.dtype, part.bias())

    def dequantised(self, part: LinearPart) -> Tensor:
        return self.weight(part).dequantised(part.dtype).to(part.device)

    def bits_per_weight(self, dtype_bytes: int) -> float:
        is_packed = self.device == "cpu" and takes_panels()
        return form_of(self.run).bits_per_weight if is_packed else 8 * dtype_bytes

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        bits = self.bits_per_weight(dtype_bytes) if in_features % BLOCK == 0 else 8 * dtype_bytes
        return out_features * in_features * bits / 8
