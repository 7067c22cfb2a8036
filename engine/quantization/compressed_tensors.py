"""Checkpoints of compressed-tensors (LLM Compressor): integers and floats of 4 and 8 bits.

- `pack-quantized`: `weight_packed` [N, K bits / 32] (int32, along the inputs), `weight_scale`
  [N, G], `weight_shape`, and where codes are not symmetric `weight_zero_point` [N bits / 32, G]
  (int32, along the outputs); `weight_g_idx` [K] where inputs were ordered by their activations.
- `int-quantized`: `weight` [N, K] (int8) and `weight_scale` [N, G].
- `float-quantized`: `weight` [N, K] (float8_e4m3fn) and `weight_scale`; see `fp8.py`.
- `naive-quantized`: either of the last two.
- `mxfp8-quantized`: like `float-quantized`, with exponents plus 127 (uint8) as scales of 32 inputs.
- `nvfp4-pack-quantized` and `mxfp4-pack-quantized`: see `compressed_float4.py`.
- `mixed-precision`: the schemes of `config_groups` have formats of their own.

Weights stay packed. Activations keep their 16 bits, even if the checkpoint is meant for 8-bit
activations. Tensors tell which layers are quantised: the patterns of `config_groups` and `ignore`
are not matched.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from engine.errors import CorruptFile, MissingWeight, ModelLoadError, ShapeMismatch
from engine.quantization.byte_groups import SYMMETRIC_ZERO, ByteWeight, bits_of_bytes
from engine.quantization.compressed_float4 import CompressedFloat4Method, float4_layer
from engine.quantization.format import Headers, QuantizedLayer, StoredFormat
from engine.quantization.fp8 import fp8_layer, fp8_layers, left_out, stated_block
from engine.quantization.int4_groups import (
    BITS,
    SCALE_DTYPES,
    GroupedWeight,
    bits_of_nibbles,
    check_finite,
    is_matrix,
    is_slower_packed_like,
    unsupported,
)
from engine.quantization.method import LinearPart, TensorSpec, bias_tensors
from engine.quantization.products import Product, ProductMethod
from kernels import GGUFType
from kernels.linear_w4a16.layouts import gptq_zeros

_FLOAT4_FORMATS = ("nvfp4-pack-quantized", "mxfp4-pack-quantized")
_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mxfp8-quantized",
    *_FLOAT4_FORMATS,
)
_MIXED = "mixed-precision"
_PACKED_BITS = (4, 8)
_UNUSED = (
    "input_scale",
    "input_global_scale",
    "output_scale",
    "input_zero_point",
    "weight_shape",
)
_INT_SIZES = {"I64": "<2q", "I32": "<2i"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedMethod(ProductMethod):
    """Integer weights whose inputs share a scale by groups."""

    bits: int
    is_packed: bool
    """Whether codes are packed into int32s; otherwise they are signed bytes."""
    num_groups: int
    group_size: int
    """Inputs of a group; 0 if there is one group."""
    has_zeros: bool
    has_g_idx: bool
    scale_dtype: torch.dtype
    scale_shape: tuple[int, ...] | None
    """The shape of a single scale for the whole weight; otherwise the shape is [N, G]."""
    left_out: tuple[tuple[str, tuple[int, ...]], ...]
    """Kinds and shapes of tensors that are not used."""
    sym: bool = False
    """Whether stored zero points are all zero."""
    device: str
    """The device of the weights, `cpu` or `cuda`."""

    @property
    def takes_plain_weights(self) -> bool:
        return False

    @property
    def is_symmetric(self) -> bool:
        return self.sym or not self.has_zeros

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        """Return the tensor specs. Ranks divide only outputs, and only of symmetric codes."""
        int32 = (torch.int32,)
        scale_axis = 0 if self.scale_shape is None else None
        specs = {
            "weight_scale": TensorSpec(
                shape=self.scale_shape or (out_features, self.num_groups),
                out_axis=scale_axis,
                dtypes=(self.scale_dtype,),
            )
        }
        if self.is_packed:
            words = math.ceil(in_features * self.bits / 32)
            specs["weight_packed"] = TensorSpec(
                shape=(out_features, words), out_axis=0, dtypes=int32
            )
        else:
            specs["weight"] = TensorSpec(
                shape=(out_features, in_features), out_axis=0, dtypes=(torch.int8,)
            )
        if self.has_zeros:
            words = math.ceil(out_features * self.bits / 32)
            shape = (words, self.num_groups) if self.is_packed else (out_features, self.num_groups)
            dtypes = int32 if self.is_packed else (torch.int8,)
            specs["weight_zero_point"] = TensorSpec(shape=shape, dtypes=dtypes)
        if self.has_g_idx:
            integers = (torch.int32, torch.int64)
            specs["weight_g_idx"] = TensorSpec(shape=(in_features,), dtypes=integers)
        specs |= {kind: TensorSpec(shape=shape) for kind, shape in self.left_out}
        return specs | bias_tensors(out_features, has_bias)

    def process(self, part: LinearPart) -> Product:
        weight = self._weight(part)
        return weight.arranged(part.device, part.dtype, part.bias())

    def dequantised(self, part: LinearPart) -> Tensor:
        return self._weight(part).dequantised(part.dtype).to(part.device)

    def _weight(self, part: LinearPart) -> GroupedWeight | ByteWeight:
        """Check loaded tensors and build the weight."""
        if part.is_part_of_inputs:
            raise ModelLoadError(
                f"{part.name(0, 'weight_scale')}: the inputs of this layer cannot be divided "
                f"between ranks; use tensor_parallel_size 1"
            )
        for kind, _ in self.left_out:
            part.shards(kind)
        scales = []
        for shard, its in enumerate(part.shards("weight_scale")):
            check_finite(part.name(shard, "weight_scale"), its)
            outputs = part.out_features[shard]
            scales.append(its.reshape(-1, 1).expand(outputs, 1) if its.numel() == 1 else its)
        zeros = self._zeros(part)
        g_idx = self._g_idx(part)
        size = self.group_size or part.in_features
        if self.bits == BITS:
            packed = [one.T.contiguous() for one in part.shards("weight_packed")]
            return GroupedWeight.of_shards(packed, [one.T for one in scales], zeros, size, g_idx)
        if self.is_packed:
            codes = [one.contiguous().view(torch.uint8) for one in part.shards("weight_packed")]
        else:
            codes = [one.view(torch.uint8) ^ SYMMETRIC_ZERO for one in part.shards("weight")]
        return ByteWeight.of_shards(codes, [one.T for one in scales], zeros, size, g_idx)

    def _zeros(self, part: LinearPart) -> list[Tensor]:
        """Return the zero points of each shard, [G, N] uint8."""
        middle = 1 << self.bits - 1
        if not self.has_zeros:
            return [
                torch.full((self.num_groups, outputs), middle, dtype=torch.uint8)
                for outputs in part.out_features
            ]
        found = []
        for shard, its in enumerate(part.shards("weight_zero_point")):
            outputs = part.out_features[shard]
            rows = math.ceil(outputs * self.bits / 32) if self.is_packed else outputs
            if its.shape[0] != rows:
                raise ModelLoadError(
                    f"{part.name(shard, 'weight_zero_point')}: zero points cannot be divided "
                    f"between ranks; use tensor_parallel_size 1"
                )
            if self.is_packed:
                zeros = gptq_zeros(its.T.contiguous(), self.bits, minus_one=False)[:, :outputs]
            else:
                zeros = (its.view(torch.uint8) ^ SYMMETRIC_ZERO).T
            found.append(zeros)
        return found

    def _g_idx(self, part: LinearPart) -> Tensor | None:
        """Return the group of each input, which all shards must share; None if groups are runs."""
        if not self.has_g_idx:
            return None
        first, *others = part.shards("weight_g_idx")
        name = part.name(0, "weight_g_idx")
        if any(not torch.equal(first, one) for one in others):
            raise ModelLoadError(
                f"{name} differs from those of the layers with the same inputs, which is not "
                f"supported; use another variant of the model"
            )
        if int(first.min()) < 0 or int(first.max()) >= self.num_groups:
            # Tools write -1 where there is no order.
            if bool((first == -1).all()):
                return None
            raise CorruptFile(
                f"{name} must hold groups from 0 to {self.num_groups - 1}; fetch the model again"
            )
        runs = torch.arange(part.in_features) // (self.group_size or part.in_features)
        return None if torch.equal(first.long(), runs) else first.int()

    def bits_per_weight(self, dtype_bytes: int) -> float:
        return self._bits(1 << 20, dtype_bytes)

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        """Return the memory of a layer, including the order of inputs, four bytes each."""
        order = 4 * in_features if self.has_g_idx else 0
        return out_features * in_features * self._bits(in_features, dtype_bytes) / 8 + order

    def _bits(self, in_features: int, dtype_bytes: int) -> float:
        size = self.group_size or in_features
        if self.bits == BITS:
            return bits_of_nibbles(
                in_features, size, self.scale_dtype, self.device, is_symmetric=self.is_symmetric
            )
        return bits_of_bytes(
            in_features,
            size,
            self.scale_dtype,
            self.device,
            dtype_bytes,
            is_symmetric=self.is_symmetric,
        )


class CompressedTensorsFormat(StoredFormat):
    """compressed-tensors checkpoints, detected by `quant_method` of the configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        _check_config(config)
        self._block = _block_of(config)
        schemes = [group["weights"] for group in (config.get("config_groups") or {}).values()]
        self._needs = tuple(
            kind
            for kind, is_needed in (
                ("weight_zero_point", lambda one: one.get("symmetric", True) is False),
                ("weight_g_idx", lambda one: one.get("actorder") in ("group", True)),
            )
            if schemes and all(map(is_needed, schemes))
        )
        """Kinds of tensors that every integer layer needs."""

    @classmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        return cls(config) if config.get("quant_method") == "compressed-tensors" else None

    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        found = {
            name: fp8_layer(name, headers, device, self._block, _UNUSED)
            for name in fp8_layers(headers)
        }
        for name, header in headers.items():
            layer, _, kind = name.rpartition(".")
            if kind == "weight_packed" and header.type == "U8":
                found[layer] = float4_layer(layer, headers, device, _UNUSED)
            elif kind == "weight_packed" or (kind == "weight" and header.type == "I8"):
                found[layer] = self._integer_layer(layer, headers, device)
        return found

    def _integer_layer(self, name: str, headers: Headers, device: str) -> QuantizedLayer:
        for needed in self._needs:
            if f"{name}.{needed}" not in headers:
                raise MissingWeight(
                    f"the checkpoint lacks {name}.{needed}, which its configuration needs; "
                    f"fetch the model again"
                )
        return integer_layer(name, headers, device)

    def is_slower_packed(self, layers: Mapping[str, QuantizedLayer], dtype: torch.dtype) -> bool:
        def like(layer: QuantizedLayer) -> GGUFType:
            method = layer.method
            if isinstance(method, CompressedMethod) and method.bits == BITS:
                return GGUFType.Q4_K if method.has_zeros else GGUFType.Q4_0
            if isinstance(method, CompressedFloat4Method):
                return GGUFType.IQ4_NL
            return GGUFType.Q8_0

        return is_slower_packed_like(layers.values(), dtype, like)


def integer_layer(name: str, headers: Headers, device: str, *, sym: bool = False) -> QuantizedLayer:
    """Describe a layer of integer weights.

    Args:
        sym: whether zero points are all zero, if there are any.

    Raises:
        MissingWeight, ShapeMismatch: the tensors do not fit together.
    """
    is_packed = f"{name}.weight_packed" in headers
    weight = headers[f"{name}.weight_packed" if is_packed else f"{name}.weight"]
    scale = headers.get(f"{name}.weight_scale")
    if scale is None:
        raise MissingWeight(f"the checkpoint lacks {name}.weight_scale; fetch the model again")
    if not is_matrix(weight.shape) or scale.type not in SCALE_DTYPES:
        raise ShapeMismatch(
            f"{name} has weights of shape {weight.shape} and scales of type {scale.type}; it must "
            f"be a matrix with scales of type {', '.join(SCALE_DTYPES)}"
        )
    out_features, in_features = weight.shape
    bits = 8
    if is_packed:
        in_features = _packed_inputs(name, headers)
        bits = next(
            (b for b in _PACKED_BITS if math.ceil(in_features * b / 32) == weight.shape[1]), 0
        )
        if weight.type != "I32" or not bits or in_features % 8:
            raise ShapeMismatch(
                f"{name}.weight_packed is {weight.type} of shape {weight.shape} for {in_features} "
                f"inputs; it must be I32 with 4 or 8 bits, and sizes must be multiples of 8"
            )
    groups, whole = 1, None
    if math.prod(scale.shape) == 1:
        whole = scale.shape
    elif len(scale.shape) == 2 and scale.shape[1] and scale.shape[0] == out_features:
        groups = scale.shape[1]
    else:
        raise ShapeMismatch(
            f"{name}.weight_scale has shape {scale.shape}; it must be one scale, or one or more "
            f"for each of the {out_features} outputs"
        )
    if in_features % groups:
        raise ShapeMismatch(
            f"{name}.weight_scale has {groups} groups, which do not divide {in_features} inputs"
        )
    method = CompressedMethod(
        bits=bits,
        is_packed=is_packed,
        num_groups=groups,
        group_size=0 if groups == 1 else in_features // groups,
        has_zeros=f"{name}.weight_zero_point" in headers,
        has_g_idx=f"{name}.weight_g_idx" in headers,
        scale_dtype=SCALE_DTYPES[scale.type],
        scale_shape=whole,
        sym=sym,
        left_out=left_out(name, headers, _UNUSED),
        device=device,
    )
    return QuantizedLayer(method, out_features, in_features)


def _packed_inputs(name: str, headers: Headers) -> int:
    """Return the number of inputs of a packed layer, which a tensor of two numbers states."""
    shape = headers.get(f"{name}.weight_shape")
    if shape is None:
        raise MissingWeight(f"the checkpoint lacks {name}.weight_shape; fetch the model again")
    content = b"" if shape.content is None else shape.content()
    form = _INT_SIZES.get(shape.type)
    if form is None or len(content) != struct.calcsize(form):
        raise ShapeMismatch(f"{name}.weight_shape has type {shape.type}; it must be two integers")
    inputs: int = struct.unpack(form, content)[1]
    if not 0 < inputs < 1 << 31:
        raise ShapeMismatch(f"{name}.weight_shape has {inputs} inputs; it must be positive")
    return inputs


def _check_config(config: Mapping[str, Any]) -> None:
    """Check the keys of the configuration.

    Raises:
        ModelLoadError: a key is nonsense or not supported; the message names it.
    """
    kind = "compressed-tensors"
    found = config.get("format")
    if found != _MIXED:
        _check_format(found)
    sparsity = config.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise unsupported(kind, "sparsity_config", sparsity, "absent, or have format dense")
    if config.get("transform_config"):
        raise unsupported(kind, "transform_config", config["transform_config"], "absent")
    groups = config.get("config_groups") or {}
    if not isinstance(groups, dict):
        raise unsupported(kind, "config_groups", groups, "an object with schemes by name")
    for group in groups.values():
        _check_scheme(group if isinstance(group, dict) else {}, found)


def _check_format(found: object) -> None:
    if found not in _FORMATS:
        raise unsupported("compressed-tensors", "format", found, f"one of {', '.join(_FORMATS)}")


def _check_scheme(group: Mapping[str, Any], form: object) -> None:
    """Check a scheme.

    Args:
        form: the format of the checkpoint.
    """
    weights = group.get("weights")
    form = group.get("format") or form
    _check_format(form)
    if not isinstance(weights, dict):
        raise unsupported(
            "compressed-tensors", "weights", weights, "an object with type and num_bits"
        )
    number, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    is_float4 = (number, bits) == ("float", 4) and form in _FLOAT4_FORMATS
    if not is_float4 and (number, bits) not in (("int", 4), ("int", 8), ("float", 8)):
        raise unsupported(
            "compressed-tensors",
            "weights",
            {"type": number, "num_bits": bits},
            "int with 4 or 8 bits, or float with 8, or with 4 as NVFP4 or MXFP4",
        )


def _block_of(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Outputs and inputs that share a scale where a scheme names them."""
    for group in (config.get("config_groups") or {}).values():
        block = group["weights"].get("block_structure")
        if block is not None:
            return stated_block("compressed-tensors", "block_structure", block)
    return None
