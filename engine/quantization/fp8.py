"""Checkpoints in 8-bit floats (float8_e4m3fn), which stay packed on a CPU.

A layer has `weight` [N, K] and either `weight_scale_inv`, a scale for each rectangle of
`weight_block_size` (DeepSeek, Qwen), or `weight_scale`: one for the whole weight, one for each
output, or in MXFP8 a power of two for each 32 inputs. Settings for rounded activations, such as
`input_scale`, are ignored: activations keep their 16 bits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from engine.errors import CorruptFile, MissingWeight, ModelLoadError, ShapeMismatch
from engine.quantization.float4_groups import powers_of_two
from engine.quantization.format import Headers, QuantizedLayer, StoredFormat
from engine.quantization.fp8_blocks import Fp8Weight, bits_of_fp8
from engine.quantization.int4_groups import (
    SCALE_DTYPES,
    check_finite,
    is_matrix,
    is_slower_packed_like,
    unsupported,
)
from engine.quantization.method import LinearPart, TensorSpec, bias_tensors
from engine.quantization.products import Product, ProductMethod
from kernels import GGUFType
from kernels.linear_panels.panels import BLOCK

FP8_TYPE = "F8_E4M3"
_SCALE_DTYPES = SCALE_DTYPES | {"U8": torch.uint8}
"""The dtypes of scales; bytes are exponents plus 127 for each 32 inputs, as in MXFP8."""
_METHODS = ("fp8", "fbgemm_fp8")
"""The values of `quant_method`."""
_SCALES = ("weight_scale_inv", "weight_scale")
_NAN = 0x7F


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Method(ProductMethod):
    """Weights in 8-bit floats; a rectangle of them shares a scale."""

    height: int
    """Outputs that share a scale; 0 for all."""
    width: int
    """Inputs that share a scale; 0 for all."""
    scale: str
    """The kind of the scales' tensor."""
    scale_shape: tuple[int, ...] | None
    """The shape of a single scale for the whole weight; otherwise scales are a matrix."""
    scale_dtype: torch.dtype
    left_out: tuple[tuple[str, tuple[int, ...]], ...]
    """Kinds and shapes of tensors that are not used."""
    device: str
    """The device of the weights, `cpu` or `cuda`."""

    @property
    def takes_plain_weights(self) -> bool:
        return False

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        """Return the tensor specs. Ranks cannot divide rectangles, since each needs all scales."""
        shape = self.scale_shape
        if shape is None:
            height, width = self._rectangle(out_features, in_features)
            shape = (math.ceil(out_features / height), math.ceil(in_features / width))
        specs = {
            "weight": TensorSpec(
                shape=(out_features, in_features),
                out_axis=0,
                in_axis=1,
                dtypes=(torch.float8_e4m3fn,),
            ),
            self.scale: TensorSpec(shape=shape, dtypes=(self.scale_dtype,)),
        }
        specs |= {kind: TensorSpec(shape=its) for kind, its in self.left_out}
        return specs | bias_tensors(out_features, has_bias)

    def process(self, part: LinearPart) -> Product:
        weight = self._weight(part)
        return weight.arranged(part.device, part.dtype, part.bias())

    def dequantised(self, part: LinearPart) -> Tensor:
        return self._weight(part).dequantised(part.dtype).to(part.device)

    def _rectangle(self, out_features: int, in_features: int) -> tuple[int, int]:
        return self.height or out_features, self.width or in_features

    def _weight(self, part: LinearPart) -> Fp8Weight:
        """Check loaded tensors and build the weight."""
        numbers, scales = part.shards("weight"), part.shards(self.scale)
        for kind, _ in self.left_out:
            part.shards(kind)
        shards = []
        # All shards have rectangles of one size, unless a scale is for a whole weight.
        height = self.height or max(part.out_features)
        width = self.width or part.in_features
        for shard, (its_numbers, its_scales) in enumerate(zip(numbers, scales, strict=True)):
            name = part.name(shard, self.scale)
            if its_scales.dtype == torch.uint8:
                its_scales = powers_of_two(name, its_scales)
            check_finite(name, its_scales)
            if bool((its_numbers.view(torch.uint8) & _NAN == _NAN).any()):
                raise CorruptFile(
                    f"{part.name(shard, 'weight')} has values that are not numbers; fetch the "
                    f"model again"
                )
            matrix = its_scales.reshape(1, 1) if self.scale_shape is not None else its_scales
            wanted = (
                math.ceil(part.out_features[shard] / height),
                math.ceil(part.in_features / width),
            )
            if part.is_part_of_inputs or tuple(matrix.shape) != wanted:
                raise ModelLoadError(
                    f"{name}: weights that share scales cannot be divided between ranks; use "
                    f"tensor_parallel_size 1"
                )
            shards.append((its_numbers, matrix))
        return Fp8Weight.of_shards(shards, height, width)

    def bits_per_weight(self, dtype_bytes: int) -> float:
        return bits_of_fp8(1 << 20, self.width or 1 << 20, self.device, dtype_bytes)

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        bits = bits_of_fp8(in_features, self.width or in_features, self.device, dtype_bytes)
        return out_features * in_features * bits / 8


class Fp8Format(StoredFormat):
    """FP8 checkpoints, detected by `quant_method`; tensors tell which layers are quantised."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._block = _block_size(config)

    @classmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        return cls(config) if config.get("quant_method") in _METHODS else None

    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        return {
            name: fp8_layer(name, headers, device, self._block, ("input_scale", "activation_scale"))
            for name in fp8_layers(headers)
        }

    def is_slower_packed(self, layers: Mapping[str, QuantizedLayer], dtype: torch.dtype) -> bool:
        return is_slower_packed_like(layers.values(), dtype, lambda _: GGUFType.Q8_0)


def fp8_layers(headers: Headers) -> list[str]:
    """Return the names of layers whose weights are such floats."""
    return [
        name.removesuffix(".weight")
        for name, header in headers.items()
        if name.endswith(".weight") and header.type == FP8_TYPE
    ]


def fp8_layer(
    name: str,
    headers: Headers,
    device: str,
    block: tuple[int, int] | None,
    unused: tuple[str, ...],
) -> QuantizedLayer:
    """Describe a layer of 8-bit floats.

    Args:
        block: outputs and inputs that share a scale; None takes it from the scales' shape.
        unused: kinds of further tensors that a layer may have.

    Raises:
        MissingWeight, ShapeMismatch: the tensors do not fit together.
    """
    shape = headers[f"{name}.weight"].shape
    kinds = [kind for kind in _SCALES if f"{name}.{kind}" in headers]
    if not kinds:
        raise MissingWeight(
            f"the checkpoint lacks the scales of {name}.weight; fetch the model again"
        )
    scale = headers[f"{name}.{kinds[0]}"]
    if not is_matrix(shape) or scale.type not in _SCALE_DTYPES:
        raise ShapeMismatch(
            f"{name}.weight has shape {shape} and {kinds[0]} type {scale.type}; it must be a "
            f"matrix with scales of type {', '.join(_SCALE_DTYPES)}"
        )
    out_features, in_features = shape
    if scale.type == "U8":
        block = (1, BLOCK)
    whole = None
    if (
        math.prod(scale.shape) == 1
        and (out_features, in_features) != (1, 1)
        and not (block and kinds[0] == "weight_scale_inv")
    ):
        height, width, whole = 0, 0, scale.shape
    elif scale.shape == (out_features, 1):
        height, width = 1, 0
    elif block is not None:
        height, width = block
    else:
        raise ShapeMismatch(
            f"{name}.{kinds[0]} has shape {scale.shape}; it must be one scale, one for each of "
            f"the {out_features} outputs, or one for each block that the configuration states"
        )
    method = Fp8Method(
        height=height,
        width=width,
        scale=kinds[0],
        scale_shape=whole,
        scale_dtype=_SCALE_DTYPES[scale.type],
        left_out=left_out(name, headers, unused),
        device=device,
    )
    return QuantizedLayer(method, out_features, in_features)


def left_out(
    name: str, headers: Headers, kinds: tuple[str, ...]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return kinds and shapes of a layer's tensors that are taken and not used."""
    return tuple(
        (kind, headers[f"{name}.{kind}"].shape) for kind in kinds if f"{name}.{kind}" in headers
    )


def _block_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the block size of the configuration.

    Raises:
        ModelLoadError: the size is nonsense, or the floats are of another type.
    """
    kind = config.get("fmt", "e4m3")
    if kind not in ("e4m3", "float8_e4m3fn"):
        raise unsupported("FP8", "fmt", kind, "e4m3")
    block = config.get("weight_block_size")
    return None if block is None else stated_block("FP8", "weight_block_size", block)


def stated_block(kind: str, key: str, block: Any) -> tuple[int, int]:
    """Return the outputs and inputs that share a scale, as the configuration states them.

    Raises:
        ModelLoadError: they are nonsense.
    """
    are_sizes = isinstance(block, list) and all(type(n) is int and 0 < n < 1 << 31 for n in block)
    if not are_sizes or len(block) != 2:
        raise unsupported(kind, key, block, "two positive numbers")
    return block[0], block[1]
