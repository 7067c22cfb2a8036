"""Weights of whole bytes that share a scale per group of inputs, or per output.

`weight = scale * (code - zero)` with codes of 0 ... 255. On a CPU they are rearranged into panels
(`kernels.linear_panels`), which hold the same numbers; on a GPU they stay bytes where a kernel
takes their scales, and are unpacked otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.quantization.int4_groups import (
    FP16_SCALES,
    GroupPanels,
    groups_of_blocks,
    scales_of_panels,
    takes_panels,
)
from engine.quantization.panels import PanelsState
from engine.quantization.products import (
    BlocksProduct,
    PlainProduct,
    Product,
    RowScaledProduct,
    fp32_bias,
)
from kernels import GGUFType, fields_apart
from kernels.linear_panels.formats import BYTES, BYTES_WITH_MIN
from kernels.linear_panels.panels import BLOCK, Codes, PanelFormat, Panels, chunks, pack_in_parts
from kernels.linear_panels.quantize import INT8

SYMMETRIC_ZERO = 128
BLOCK_BITS = 8.5
"""Bits per weight of GGUF's Q8_0."""


@dataclass(frozen=True, slots=True)
class ByteWeight:
    """Weights of outputs whose inputs have the same groups."""

    codes: Tensor
    """[N, K] uint8."""
    scales: Tensor
    """[N, G], any float dtype."""
    zeros: Tensor | None
    """[N, G] uint8; None if all are 128."""
    group_size: int
    g_idx: Tensor | None = None
    """[K], the group of each input; None if groups are runs of inputs."""

    @classmethod
    def of_shards(
        cls,
        codes: Sequence[Tensor],
        scales: Sequence[Tensor],
        zeros: Sequence[Tensor],
        group_size: int,
        g_idx: Tensor | None = None,
    ) -> "ByteWeight":
        """Build a weight from neighbouring outputs' codes [N, K], and scales and zero points [G,
        N]."""
        all_zeros = torch.cat(list(zeros), 1).T.contiguous()
        is_symmetric = bool((all_zeros == SYMMETRIC_ZERO).all())
        return cls(
            torch.cat(list(codes)),
            torch.cat(list(scales), 1).T.contiguous(),
            None if is_symmetric else all_zeros,
            group_size,
            g_idx,
        )

    @property
    def out_features(self) -> int:
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        return self.codes.shape[1]

    def arranged(self, device: torch.device, dtype: torch.dtype, bias: Tensor | None) -> Product:
        """Arrange the weight on the device of its products, for activations in `dtype`."""
        found = groups_of_blocks(self.in_features, self.group_size, self.g_idx)
        if found is not None and device.type == "cpu" and takes_panels():
            order, groups = found
            return GroupPanels(PanelsState.of(self._panels(groups, order), bias), order)
        if self.zeros is None and self.scales.shape[1] == 1:
            return RowScaledProduct(
                (self.codes ^ SYMMETRIC_ZERO).view(torch.int8).to(device),
                self.scales[:, 0].float().to(device),
                fp32_bias(bias),
            )
        of_blocks = scales_of_panels(self.scales)
        if found is not None and self.zeros is None and of_blocks.dtype == torch.float16:
            order, groups = found
            rows = self._blocks(of_blocks[:, groups], order).to(device)
            rows = fields_apart(rows, GGUFType.Q8_0)
            order = None if order is None else order.to(device)
            return BlocksProduct(rows, GGUFType.Q8_0, fp32_bias(bias), order)
        return PlainProduct.of(self.dequantised(dtype).to(device), bias)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Compute the plain weight [N, K] in new memory, without the bias."""
        groups = self.g_idx
        if groups is None:
            groups = torch.arange(self.in_features) // self.group_size
        weight = torch.empty(self.codes.shape, dtype=dtype)
        for some in chunks(self.out_features, self.in_features):
            zeros = SYMMETRIC_ZERO if self.zeros is None else self.zeros[some][:, groups].float()
            numbers = (self.codes[some].float() - zeros) * self.scales[some][:, groups].float()
            weight[some] = numbers
        return weight

    def _panels(self, groups: Tensor, order: Tensor | None) -> Panels:
        of_panels = scales_of_panels(self.scales)
        form = panel_format(of_panels.dtype, is_symmetric=self.zeros is None)

        def codes(some: slice) -> Codes:
            scales = of_panels[some][:, groups].to(form.scale_dtype)
            mins = None
            if self.zeros is not None:
                mins = -scales * self.zeros[some][:, groups]
            return Codes(
                format=form, codes=_ordered(self.codes[some], order), scales=scales, mins=mins
            )

        return pack_in_parts(self.out_features, self.in_features, codes)

    def _blocks(self, scales: Tensor, order: Tensor | None) -> Tensor:
        """Convert fp16 scales [N, K / 32] and the codes to GGUF's Q8_0, [N, bytes]."""
        codes = _ordered(self.codes, order) ^ SYMMETRIC_ZERO
        shape = (self.out_features, self.in_features // BLOCK, -1)
        of_scales = scales.contiguous().view(torch.uint8)
        return torch.cat([of_scales.view(shape), codes.view(shape)], 2).flatten(1)


def panel_format(scale_dtype: torch.dtype, *, is_symmetric: bool) -> PanelFormat:
    """Return the panel format of weights with such scales; bf16 scales are ones that fp16 can
    hold."""
    if not is_symmetric:
        return BYTES_WITH_MIN
    return INT8 if scale_dtype in FP16_SCALES else BYTES


def bits_of_bytes(
    in_features: int,
    group_size: int,
    scale_dtype: torch.dtype,
    device: str,
    dtype_bytes: int,
    *,
    is_symmetric: bool,
) -> float:
    """Return bits per weight in memory, scales included.

    Args:
        device: `cpu` or `cuda`.
        dtype_bytes: bytes of an activation.
    """
    has_blocks = in_features % BLOCK == 0
    has_blocks &= group_size % BLOCK == 0 or group_size >= in_features
    if has_blocks and device == "cpu" and takes_panels():
        return panel_format(scale_dtype, is_symmetric=is_symmetric).bits_per_weight
    if is_symmetric and group_size >= in_features:
        return 8 + 32 / in_features
    if is_symmetric and has_blocks and scale_dtype in FP16_SCALES:
        return BLOCK_BITS
    return 8 * dtype_bytes


def _ordered(codes: Tensor, order: Tensor | None) -> Tensor:
    return codes.contiguous() if order is None else codes[:, order.long()]
