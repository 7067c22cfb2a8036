"""Checkpoints of HQQ in safetensors, as transformers' HqqConfig writes them.

A layer has `W_q`, codes of 1, 2, 3, 4 or 8 bits in rows of one group each, and `scale` and `zero`
for each group: `weight = scale * (code - zero)`. A byte holds codes of rows far apart, the first in
the uppermost bits; with 3 bits an int32 holds ten. `nbits`, `group_size`, `axis` and `shape` state
the rest. Groups of inputs (`axis` 1) stay packed, groups of outputs (`axis` 0) are unpacked.

Description: https://mobiusml.github.io/hqq_blog
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import structlog
import torch
from torch import Tensor

from engine.errors import MissingWeight, ModelLoadError, ShapeMismatch
from engine.quantization.format import Headers, QuantizedLayer, StoredFormat
from engine.quantization.fp8 import left_out
from engine.quantization.int4_groups import (
    ASYMMETRIC,
    BITS,
    SCALE_DTYPES,
    GroupPanels,
    check_finite,
    is_slower_packed_like,
    takes_panels,
)
from engine.quantization.method import LinearPart, TensorSpec, bias_tensors
from engine.quantization.panels import PanelsState
from engine.quantization.products import PlainProduct, Product, ProductMethod
from kernels import GGUFType
from kernels.linear_panels.formats import BYTES_WITH_MIN
from kernels.linear_panels.panels import BLOCK, Codes, PanelFormat, pack_in_parts

log = structlog.get_logger(__name__)
_STORED_BITS = (1, 2, 3, 4, 8)
_STATED = ("nbits", "group_size", "axis", "shape")
_UNUSED = (
    *_STATED,
    "packing",
    "unpack_view_dtype",
    "view_as_float",
    "quant_scale",
    "quant_zero",
    "compute_dtype",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
    "channel_wise",
    "optimize",
    "round_zero",
)
_INT_SIZES = {"I64": "q", "I32": "i", "U8": "B"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HqqMethod(ProductMethod):
    """Codes with a scale and a zero point that is not an integer."""

    bits: int
    group_size: int
    axis: int
    """1 if groups are runs of inputs."""
    scale_dtypes: tuple[torch.dtype, torch.dtype]
    """The dtypes of scales and zero points."""
    left_out: tuple[tuple[str, tuple[int, ...]], ...]
    """Kinds and shapes of tensors that are not used."""
    device: str
    """The device of the weights, `cpu` or `cuda`."""

    @property
    def takes_plain_weights(self) -> bool:
        return False

    @property
    def has_panels(self) -> bool:
        """Whether weights stay packed."""
        is_run = self.axis == 1 and self.group_size % BLOCK == 0
        return is_run and self.device == "cpu" and takes_panels()

    @property
    def _form(self) -> PanelFormat:
        return ASYMMETRIC if self.bits <= BITS else BYTES_WITH_MIN

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        """Return the tensor specs. Ranks can divide neither inputs nor outputs."""
        groups = in_features * out_features // self.group_size
        shape = (groups, 1) if self.axis == 1 else (1, groups)
        specs = {
            "W_q": TensorSpec(
                shape=self.packed_shape(in_features * out_features),
                dtypes=(torch.int32 if self.bits == 3 else torch.uint8,),
            )
        }
        for kind, dtype in zip(("scale", "zero"), self.scale_dtypes, strict=True):
            specs[kind] = TensorSpec(shape=shape, dtypes=(dtype,))
        specs |= {kind: TensorSpec(shape=its) for kind, its in self.left_out}
        return specs | bias_tensors(out_features, has_bias)

    def packed_shape(self, numel: int) -> tuple[int, int]:
        """Return the shape of `W_q` for a number of weights."""
        rows, columns = self.group_size, numel // self.group_size
        if self.axis == 1:
            rows, columns = columns, rows
        return math.ceil(rows / _codes_together(self.bits)), columns

    def process(self, part: LinearPart) -> Product:
        codes, scales, zeros = self._loaded(part)
        if not self.has_panels:
            return PlainProduct.of(
                _plain(codes, scales, zeros).to(part.device, part.dtype), part.bias()
            )
        mins = -scales * zeros

        def codes_of(some: slice) -> Codes:
            times = self.group_size // BLOCK
            return Codes(
                format=self._form,
                codes=codes[some].flatten(1),
                scales=scales[some].flatten(1).repeat_interleave(times, 1),
                mins=mins[some].flatten(1).repeat_interleave(times, 1),
            )

        panels = pack_in_parts(len(codes), part.in_features, codes_of)
        return GroupPanels(PanelsState.of(panels, part.bias()), None)

    def dequantised(self, part: LinearPart) -> Tensor:
        return _plain(*self._loaded(part)).to(part.device, part.dtype)

    def _loaded(self, part: LinearPart) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes, fp32 scales and fp32 zero points of all shards, which spread to each
        other's shapes, [N, groups, inputs]."""
        for kind, _ in self.left_out:
            part.shards(kind)
        loaded = zip(*(part.shards(kind) for kind in ("W_q", "scale", "zero")), strict=True)
        found: list[tuple[Tensor, ...]] = []
        for shard, (packed, scale, zero) in enumerate(loaded):
            for kind, one in (("scale", scale), ("zero", zero)):
                check_finite(part.name(shard, kind), one)
            outputs, inputs = part.out_features[shard], part.in_features
            if self.packed_shape(outputs * inputs) != tuple(packed.shape):
                raise ModelLoadError(
                    f"{part.name(shard, 'W_q')}: HQQ's weights cannot be divided between ranks; "
                    f"use tensor_parallel_size 1"
                )
            codes = _unpacked(packed, self.bits)
            if self.axis == 1:
                codes = codes[: scale.numel()]
                width = self.group_size
                numbers = scale.view(outputs, -1, 1), zero.view(outputs, -1, 1)
            else:
                codes, width = codes[: self.group_size], 1
                numbers = tuple(
                    one.expand(codes.shape).reshape(outputs, inputs, 1) for one in (scale, zero)
                )
            found.append((codes.reshape(outputs, -1, width), *(one.float() for one in numbers)))
        codes, scales, zeros = (torch.cat(ones) for ones in zip(*found, strict=True))
        return codes, scales, zeros

    def bits_per_weight(self, dtype_bytes: int) -> float:
        return self._form.bits_per_weight if self.has_panels else 8 * dtype_bytes


class HqqFormat(StoredFormat):
    """HQQ checkpoints, detected by `quant_method`; tensors tell which layers are quantised."""

    @classmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        return cls() if config.get("quant_method") == "hqq" else None

    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        names = [name.removesuffix(".W_q") for name in headers if name.endswith(".W_q")]
        found = {name: _layer(name, headers, device) for name in names}
        methods = [one.method for one in found.values()]
        odd = [one for one in methods if isinstance(one, HqqMethod) and not one.has_panels]
        if odd and device == "cpu" and takes_panels():
            log.warning(
                "layers are unpacked, because their groups are not multiples of 32 inputs; they "
                "take the memory of plain weights",
                format="hqq",
                layers=len(odd),
            )
        return found

    def is_slower_packed(self, layers: Mapping[str, QuantizedLayer], dtype: torch.dtype) -> bool:
        def like(layer: QuantizedLayer) -> GGUFType:
            assert isinstance(layer.method, HqqMethod)
            return GGUFType.Q4_K if layer.method.bits <= BITS else GGUFType.Q8_0

        return is_slower_packed_like(layers.values(), dtype, like)


def _layer(name: str, headers: Headers, device: str) -> QuantizedLayer:
    """Describe a layer.

    Raises:
        MissingWeight, ShapeMismatch: the tensors do not fit together.
    """
    for kind in (*_STATED, "scale", "zero"):
        if f"{name}.{kind}" not in headers:
            raise MissingWeight(
                f"the checkpoint lacks {name}.{kind}, which an HQQ layer needs; fetch the model "
                f"again"
            )
    (bits,), (group_size,), (axis,) = (_stated(name, kind, 1, headers) for kind in _STATED[:3])
    out_features, in_features = _stated(name, "shape", 2, headers)
    divided = in_features if axis == 1 else out_features * in_features
    sizes = (out_features, in_features, group_size)
    are_sizes = all(0 < size < 1 << 31 for size in sizes) and divided % group_size == 0
    types = tuple(headers[f"{name}.{kind}"].type for kind in ("scale", "zero"))
    packed = headers[f"{name}.W_q"]
    if bits not in _STORED_BITS or axis not in (0, 1) or not are_sizes:
        raise ShapeMismatch(
            f"{name} states {bits} bits in groups of {group_size} along axis {axis} of "
            f"{out_features} outputs and {in_features} inputs; bits must be one of "
            f"{', '.join(map(str, _STORED_BITS))}, and groups must divide the inputs"
        )
    if any(one not in SCALE_DTYPES for one in types):
        raise ShapeMismatch(
            f"{name}.scale and zero have types {', '.join(types)}; they must be one of "
            f"{', '.join(SCALE_DTYPES)}: quantised scales are not supported"
        )
    method = HqqMethod(
        bits=bits,
        group_size=group_size,
        axis=axis,
        scale_dtypes=(SCALE_DTYPES[types[0]], SCALE_DTYPES[types[1]]),
        left_out=left_out(name, headers, _UNUSED),
        device=device,
    )
    wanted = method.packed_shape(out_features * in_features)
    if packed.shape != wanted or packed.type not in ("U8", "I32"):
        raise ShapeMismatch(
            f"{name}.W_q has type {packed.type} and shape {packed.shape}; it must be integers of "
            f"shape {wanted}; weights that are viewed as floats are not supported"
        )
    return QuantizedLayer(method, out_features, in_features)


def _stated(name: str, kind: str, count: int, headers: Headers) -> tuple[int, ...]:
    """Return the integers that a small tensor holds."""
    header = headers[f"{name}.{kind}"]
    form = f"<{count}{_INT_SIZES.get(header.type, 'x')}"
    content = b"" if header.content is None else header.content()
    if form.endswith("x") or len(content) != struct.calcsize(form):
        raise ShapeMismatch(
            f"{name}.{kind} has type {header.type} and shape {header.shape}; it must be {count} "
            f"integers"
        )
    return struct.unpack(form, content)


def _codes_together(bits: int) -> int:
    """Return the codes in a byte, or in an int32."""
    return 10 if bits == 3 else 8 // bits


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """Unpack codes to uint8; rows beyond the last group may follow."""
    places = range(_codes_together(bits) - 1, -1, -1)
    return torch.cat([packed >> bits * place & (1 << bits) - 1 for place in places]).to(torch.uint8)


def _plain(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Compute the weight [N, K] in fp32."""
    return ((codes.float() - zeros) * scales).flatten(1)
