"""Weights of 4 and 8 bits in bitsandbytes' formats, from checkpoints or made from plain ones at
load.

A layer of 4 bits has `weight` [N K / 2, 1], a stream of two numbers to a byte; `weight.absmax`, a
magnitude for each `blocksize` weights of the stream; and `weight.quant_state.bitsandbytes__nf4` (or
`fp4`), JSON with the shape. With nested quantisation, magnitudes are 8-bit codes: indices into
`weight.nested_quant_map`, times one of `weight.nested_absmax`, plus an offset in the JSON. A layer
of 8 bits has `weight` [N, K] (int8) and `SCB` [N], 127 times the scales. The library is not needed.

In 8 bits the library also rounds all but large activations. Here activations are not rounded.

Papers: LLM.int8(), Dettmers et al. 2022, arXiv:2208.07339; QLoRA, Dettmers et al. 2023,
arXiv:2305.14314.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from engine.errors import CorruptFile, MissingWeight, ModelLoadError, ShapeMismatch
from engine.files.checkpoint_files import parse_json
from engine.quantization.byte_groups import SYMMETRIC_ZERO, ByteWeight, bits_of_bytes
from engine.quantization.format import Headers, LoadFormat, QuantizedLayer, StoredFormat
from engine.quantization.four_bit_blocks import FourBitMethod, Numbers, rounded_to_4_bits
from engine.quantization.int4_groups import check_finite, is_matrix, is_slower_packed_like
from engine.quantization.method import LinearPart, TensorSpec, bias_tensors
from engine.quantization.products import Product, ProductMethod
from kernels import GGUFType
from kernels.linear_nf4 import resolve_absmax
from kernels.linear_panels.panels import BLOCK
from kernels.shared import four_bit_numbers

BLOCK_SIZE = 64
"""Weights that share a magnitude in formats made here: the library's default."""
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_MOST_STATE_BYTES = 4096
_STATE = "quant_state.bitsandbytes__"
_STORAGE = {
    "U8": torch.uint8,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}
"""The dtypes that a stream of bytes may be stored in."""
_BYTES = ("I8", "U8")
_TABLES = {"nf4": four_bit_numbers.NF4, "fp4": four_bit_numbers.FP4}
_INT8_MOST = 127
_LAYOUT_DTYPES = (torch.uint8, torch.int32, torch.int64)


@dataclass(frozen=True, slots=True)
class MadeFourBitMethod(FourBitMethod):
    """4-bit weights made from plain ones."""

    def process(self, part: LinearPart) -> Product:
        bias = part.bias()
        return self._rounded(part.concatenated_as_loaded("weight"), bias, part.dtype, part.device)

    def arrange(self, weight: Tensor, bias: Tensor | None = None) -> Product:
        return self._rounded(weight, bias, weight.dtype, weight.device)

    def _rounded(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, device: torch.device
    ) -> Product:
        made = rounded_to_4_bits(weight.cpu(), self.numbers, self.block_size)
        return self.product([made], weight.shape[1], dtype, device, bias)


@dataclass(frozen=True, slots=True)
class StoredFourBitMethod(FourBitMethod):
    """4-bit weights from a checkpoint."""

    nested_block_size: int | None
    """Magnitudes that share a magnitude of their own; None if magnitudes are not nested."""
    storage: torch.dtype

    @property
    def takes_plain_weights(self) -> bool:
        return False

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        """Return the tensor specs. Ranks cannot divide the weights, since blocks are runs of a
        stream."""
        count = in_features * out_features
        blocks = math.ceil(count / self.block_size)
        fp32, uint8 = (torch.float32,), (torch.uint8,)
        size = math.ceil(math.ceil(count / 2) / self.storage.itemsize)
        specs = {
            "weight": TensorSpec(shape=(size, 1), dtypes=(self.storage,)),
            "weight.absmax": TensorSpec(
                shape=(blocks,), dtypes=fp32 if self.nested_block_size is None else uint8
            ),
            "weight.quant_map": TensorSpec(shape=(16,), dtypes=fp32),
            f"weight.{_STATE}{self.numbers}": TensorSpec(
                shape=(_MOST_STATE_BYTES,), dtypes=uint8, is_most=True
            ),
        }
        if self.nested_block_size is not None:
            nested = math.ceil(blocks / self.nested_block_size)
            specs["weight.nested_absmax"] = TensorSpec(shape=(nested,), dtypes=fp32)
            specs["weight.nested_quant_map"] = TensorSpec(shape=(256,), dtypes=fp32)
        return specs | bias_tensors(out_features, has_bias)

    def process(self, part: LinearPart) -> Product:
        shards = self._shards(part)
        return self.product(shards, part.in_features, part.dtype, part.device, part.bias())

    def dequantised(self, part: LinearPart) -> Tensor:
        weight = self.unpacked(self._shards(part), part.in_features, part.dtype)
        return weight.to(part.device)

    def _shards(self, part: LinearPart) -> list[tuple[Tensor, Tensor]]:
        """Check and return packed weights and magnitudes."""
        kinds = self.tensors(part.in_features, 1, False)
        loaded = {kind: part.shards(kind) for kind in kinds}
        shards = []
        for shard, out_features in enumerate(part.out_features):
            packed = loaded["weight"][shard].flatten().view(torch.uint8)
            size = math.ceil(part.in_features * out_features / 2)
            # The last number of a wider type may have a spare byte.
            if not 0 <= len(packed) - size < self.storage.itemsize or part.is_part_of_inputs:
                raise ModelLoadError(
                    f"{part.name(shard, 'weight')}: bitsandbytes' weights of 4 bits cannot be "
                    f"divided between ranks; use tensor_parallel_size 1"
                )
            of_map = loaded["weight.quant_map"][shard]
            if not torch.allclose(of_map, torch.tensor(_TABLES[self.numbers]), atol=1e-4):
                raise CorruptFile(
                    f"{part.name(shard, 'weight.quant_map')} does not have the values of "
                    f"{self.numbers}; fetch the model again"
                )
            shards.append((packed[:size], self._magnitudes(part, shard, loaded)))
        return shards

    def _magnitudes(
        self, part: LinearPart, shard: int, loaded: Mapping[str, list[Tensor]]
    ) -> Tensor:
        """Return the magnitudes, [blocks] fp32."""
        absmax = loaded["weight.absmax"][shard]
        if self.nested_block_size is not None:
            name = part.name(shard, f"weight.{_STATE}{self.numbers}")
            stated = loaded[f"weight.{_STATE}{self.numbers}"][shard].numpy().tobytes()
            offset = _state(name, stated).get("nested_offset")
            if not isinstance(offset, int | float) or isinstance(offset, bool):
                raise CorruptFile(f"{name} has no nested_offset; fetch the model again")
            absmax = resolve_absmax(
                absmax,
                loaded["weight.nested_absmax"][shard],
                loaded["weight.nested_quant_map"][shard],
                self.nested_block_size,
                float(offset),
            )
        check_finite(part.name(shard, "weight.absmax"), absmax)
        return absmax


@dataclass(frozen=True, slots=True)
class LlmInt8Method(ProductMethod):
    """Weights of one byte, which share a scale per output."""

    device: str = "cpu"
    """The device of the weights; on some devices weights made at load take more memory."""

    def _product(
        self,
        weight: Tensor,
        scales: Tensor,
        part_dtype: torch.dtype,
        device: torch.device,
        bias: Tensor | None,
    ) -> Product:
        return _byte_weight(weight, scales).arranged(device, part_dtype, bias)

    def bits_per_weight(self, dtype_bytes: int) -> float:
        return self._bits(1 << 20, dtype_bytes)

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        return out_features * in_features * self._bits(in_features, dtype_bytes) / 8

    def _bits(self, in_features: int, dtype_bytes: int) -> float:
        return bits_of_bytes(
            in_features, in_features, torch.float32, self.device, dtype_bytes, is_symmetric=True
        )


@dataclass(frozen=True, slots=True)
class MadeLlmInt8Method(LlmInt8Method):
    """8-bit weights made from plain ones."""

    def process(self, part: LinearPart) -> Product:
        bias = part.bias()
        return self._rounded(part.concatenated_as_loaded("weight"), bias, part.dtype, part.device)

    def arrange(self, weight: Tensor, bias: Tensor | None = None) -> Product:
        return self._rounded(weight, bias, weight.dtype, weight.device)

    def _rounded(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, device: torch.device
    ) -> Product:
        numbers = weight.cpu().float()
        scales = numbers.abs().amax(1) / _INT8_MOST
        inverse = scales.reciprocal().nan_to_num(posinf=0.0)
        codes = (numbers * inverse[:, None]).round_().clamp_(-_INT8_MOST, _INT8_MOST)
        return self._product(codes.to(torch.int8), scales, dtype, device, bias)


@dataclass(frozen=True, slots=True)
class StoredLlmInt8Method(LlmInt8Method):
    """8-bit weights from a checkpoint."""

    has_layout: bool = False
    """Whether there is a tensor `weight_format` that states the layout of rows."""

    @property
    def takes_plain_weights(self) -> bool:
        return False

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        specs = {
            "weight": TensorSpec(
                shape=(out_features, in_features), out_axis=0, in_axis=1, dtypes=(torch.int8,)
            ),
            "SCB": TensorSpec(shape=(out_features,), out_axis=0, dtypes=(torch.float32,)),
        }
        if self.has_layout:
            specs["weight_format"] = TensorSpec(shape=(), dtypes=_LAYOUT_DTYPES)
        return specs | bias_tensors(out_features, has_bias)

    def process(self, part: LinearPart) -> Product:
        weight, scales = self._loaded(part)
        return self._product(weight, scales, part.dtype, part.device, part.bias())

    def dequantised(self, part: LinearPart) -> Tensor:
        return _byte_weight(*self._loaded(part)).dequantised(part.dtype).to(part.device)

    def _loaded(self, part: LinearPart) -> tuple[Tensor, Tensor]:
        """Check and return int8 [N, K] and scales [N]."""
        weight, scales = part.concatenated_as_loaded("weight"), part.shards("SCB")
        layouts = part.shards("weight_format") if self.has_layout else []
        for shard, its_scales in enumerate(scales):
            check_finite(part.name(shard, "SCB"), its_scales)
        for shard, layout in enumerate(layouts):
            if int(layout) != 0:
                raise ModelLoadError(
                    f"{part.name(shard, 'weight_format')} is {int(layout)}: weights saved in "
                    f"a GPU's own order are not supported; save the model again with a newer "
                    f"bitsandbytes"
                )
        return weight, torch.cat(scales) / _INT8_MOST


class BitsandbytesFormat(StoredFormat):
    """Checkpoints of bitsandbytes, detected by `quant_method`; tensors tell which layers it has."""

    @classmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        return cls() if config.get("quant_method") == "bitsandbytes" else None

    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        found = {}
        for name, header in headers.items():
            layer, _, numbers = name.rpartition(f".weight.{_STATE}")
            if layer and numbers in _TABLES:
                stated = b"" if header.content is None else header.content()
                found[layer] = _four_bit_layer(layer, numbers, _state(name, stated), headers)
            elif name.endswith(".SCB"):
                layer = name.removesuffix(".SCB")
                found[layer] = _int8_layer(layer, headers, device)
        for name, header in headers.items():
            layer = name.removesuffix(".weight")
            if header.type in _BYTES and layer != name and layer not in found:
                raise MissingWeight(
                    f"the checkpoint lacks the quantisation state of {name}; fetch the model again"
                )
        return found

    def is_slower_packed(self, layers: Mapping[str, QuantizedLayer], dtype: torch.dtype) -> bool:
        def like(layer: QuantizedLayer) -> GGUFType:
            is_bytes = isinstance(layer.method, LlmInt8Method)
            return GGUFType.Q8_0 if is_bytes else GGUFType.IQ4_NL

        return is_slower_packed_like(layers.values(), dtype, like)


def _byte_weight(weight: Tensor, scales: Tensor) -> ByteWeight:
    """Convert int8 [N, K] and scales [N] to the form that panels take."""
    codes = weight.view(torch.uint8) ^ SYMMETRIC_ZERO
    return ByteWeight(codes, scales[:, None], None, weight.shape[1])


def _four_bit_layer(
    name: str, numbers: Any, state: dict[str, Any], headers: Headers
) -> QuantizedLayer:
    shape, block_size = state.get("shape"), state.get("blocksize")
    is_matrix = isinstance(shape, list) and len(shape) == 2
    if not is_matrix or not all(type(n) is int and 0 < n < 1 << 31 for n in shape):  # type: ignore[union-attr]
        raise ShapeMismatch(
            f"{name}: the shape of a weight packed by bitsandbytes must have two dimensions"
        )
    if type(block_size) is not int or block_size not in _BLOCK_SIZES:
        raise ModelLoadError(
            f"{name}: the block size is {str(block_size)[:20]}; it must be one of "
            f"{', '.join(map(str, _BLOCK_SIZES))}"
        )
    nested = None
    if f"{name}.weight.nested_absmax" in headers:
        nested = state.get("nested_blocksize")
        if type(nested) is not int or not 0 < nested < 1 << 31:
            raise CorruptFile(f"{name} has no nested_blocksize; fetch the model again")
    weight = headers.get(f"{name}.weight")
    if weight is None:
        raise MissingWeight(f"the checkpoint lacks {name}.weight; fetch the model again")
    if weight.type not in _STORAGE:
        raise ShapeMismatch(
            f"{name}.weight has type {weight.type}; it must be one of {', '.join(_STORAGE)}"
        )
    out_features, in_features = shape  # type: ignore[misc]
    method = StoredFourBitMethod(numbers, block_size, nested, _STORAGE[weight.type])
    wanted = method.tensors(in_features, out_features, False)["weight"].shape
    if weight.shape != wanted:
        raise ShapeMismatch(
            f"{name}.weight has shape {weight.shape}; 4-bit weights of {out_features} outputs and "
            f"{in_features} inputs must have {wanted}"
        )
    return QuantizedLayer(method, out_features, in_features)


def _int8_layer(name: str, headers: Headers, device: str) -> QuantizedLayer:
    weight = headers.get(f"{name}.weight")
    if weight is None:
        raise MissingWeight(f"the checkpoint lacks {name}.weight; fetch the model again")
    if not is_matrix(weight.shape):
        raise ShapeMismatch(f"{name}.weight has shape {weight.shape}; it must be a matrix")
    method = StoredLlmInt8Method(device, f"{name}.weight_format" in headers)
    return QuantizedLayer(method, *weight.shape)


def _state(name: str, stated: bytes) -> dict[str, Any]:
    """Read the quantisation state of a 4-bit layer."""
    if not stated:
        raise CorruptFile(f"{name} is empty or too large; fetch the model again")
    return parse_json(stated, name)


class _FourBitFormat(LoadFormat):
    """A format for layers whose rows are whole blocks; as in the library, the output layer stays
    plain."""

    numbers: Numbers

    def method_for(self, out_features: int, in_features: int) -> MadeFourBitMethod | None:
        divides = in_features % BLOCK_SIZE == 0
        return MadeFourBitMethod(self.numbers, BLOCK_SIZE) if divides else None

    def output_method_for(self, out_features: int, in_features: int) -> None:
        return None


class Nf4Format(_FourBitFormat):
    """NF4: 4-bit numbers spaced like those of a normal distribution."""

    numbers = "nf4"


class Fp4Format(_FourBitFormat):
    """FP4: floats of 4 bits."""

    numbers = "fp4"


class LlmInt8Format(LoadFormat):
    """LLM.int8() for layers that panels can hold; as in the library, the output layer stays
    plain."""

    def method_for(self, out_features: int, in_features: int) -> MadeLlmInt8Method | None:
        return MadeLlmInt8Method() if in_features % BLOCK == 0 else None

    def output_method_for(self, out_features: int, in_features: int) -> None:
        return None
