"""GPTQ checkpoints with 2, 3, 4 and 8 bits, as AutoGPTQ and GPTQModel write them; they stay packed.

A layer has `qweight` [K · bits / 32, N] and `qzeros` [G, N · bits / 32] (int32, a stream of numbers
each), `scales` [G, N] and `g_idx` [K], the group of each input. Groups are runs of `group_size`
inputs, unless `desc_act` ordered inputs by their activations. In memory a number has 4 or 8 bits.

Paper: Frantar et al. 2022, arXiv:2210.17323.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor

from engine.errors import CorruptFile, MissingWeight, ModelLoadError, ShapeMismatch
from engine.quantization.byte_groups import ByteWeight, bits_of_bytes
from engine.quantization.format import Headers, QuantizedLayer, StoredFormat
from engine.quantization.int4_groups import (
    BITS,
    GroupedMethod,
    GroupedWeight,
    check_finite,
    check_group_size,
    is_slower_packed_like,
    packed_layers,
    packed_shape,
    stored_scale_dtype,
    unsupported,
)
from engine.quantization.method import LinearPart, TensorSpec, bias_tensors
from engine.quantization.products import Product
from kernels import GGUFType
from kernels.linear_w4a16.layouts import gptq_bytes, gptq_weight, gptq_zeros, numbers_together

_STORED_BITS = (2, 3, 4, 8)
_MINUS_ONE = {"gptq": True, "gptq_v2": False}
"""Whether zero points are stored less one, by `checkpoint_format`."""
_LEFT_OUT = "-:"
"""The beginning of patterns of layers that stay plain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqMethod(GroupedMethod[tuple[Product, ...]]):
    """A method with one product for neighbouring shards, or several where their groups differ."""

    bits: int
    """Bits of a number in the file."""
    desc_act: bool
    """Whether the inputs of a group may lie anywhere."""
    zeros_minus_one: bool
    """Whether zero points are stored less one."""
    has_g_idx: bool
    sym: bool
    """Whether zero points are in the middle: 8 with 4 bits and 128 with 8 bits, where they are not
    kept."""

    @property
    def is_symmetric(self) -> bool:
        return self.sym and self.bits >= BITS

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        """Return the tensor specs. Groups are divided with the inputs where they are runs."""
        groups = self.num_groups(in_features)
        group_axis = None if self.desc_act or groups == 1 else 0
        int32 = (torch.int32,)
        specs = {
            "qweight": TensorSpec(
                shape=(math.ceil(in_features * self.bits / 32), out_features),
                in_axis=0,
                out_axis=1,
                dtypes=int32,
            ),
            "qzeros": TensorSpec(
                shape=(groups, out_features * self.bits // 32),
                in_axis=group_axis,
                out_axis=1,
                dtypes=int32,
            ),
            "scales": TensorSpec(
                shape=(groups, out_features),
                in_axis=group_axis,
                out_axis=1,
                dtypes=(self.scale_dtype,),
            ),
        }
        if self.has_g_idx:
            specs["g_idx"] = TensorSpec(shape=(in_features,), in_axis=0, dtypes=int32)
        return specs | bias_tensors(out_features, has_bias)

    def process(self, part: LinearPart) -> tuple[Product, ...]:
        weights = self._weights(part)
        bias = part.bias()
        sizes = [weight.out_features for weight in weights]
        biases = [None] * len(sizes) if bias is None else torch.split(bias, sizes)
        return tuple(
            weight.arranged(part.device, part.dtype, its_bias)
            for weight, its_bias in zip(weights, biases, strict=True)
        )

    def dequantised(self, part: LinearPart) -> Tensor:
        weights = [one.dequantised(part.dtype) for one in self._weights(part)]
        return torch.cat(weights).to(part.device)

    def _weights(self, part: LinearPart) -> list[GroupedWeight | ByteWeight]:
        """Check loaded tensors and build the weights, one for shards with the same groups."""
        self._check_sizes(part)
        kinds = ("qweight", "qzeros", "scales", *(["g_idx"] if self.has_g_idx else []))
        loaded = {kind: part.shards(kind) for kind in kinds}
        shards = range(len(part.out_features))
        for shard in shards:
            check_finite(part.name(shard, "scales"), loaded["scales"][shard])
        orders = [
            self._order(part, shard, loaded["g_idx"][shard]) if self.has_g_idx else None
            for shard in shards
        ]
        runs = groupby(shards, lambda shard: _Order(orders[shard]))
        return [self._weight(part, order.g_idx, list(run), loaded) for order, run in runs]

    def _weight(
        self,
        part: LinearPart,
        g_idx: Tensor | None,
        shards: list[int],
        loaded: Mapping[str, list[Tensor]],
    ) -> GroupedWeight | ByteWeight:
        zeros = [
            gptq_zeros(loaded["qzeros"][shard], self.bits, minus_one=self.zeros_minus_one)
            for shard in shards
        ]
        scales = [loaded["scales"][shard] for shard in shards]
        size = min(self.run_of(part.in_features), part.in_features)
        own_g_idx = None if g_idx is None else g_idx.clone()
        if self.bits > BITS:
            codes = [gptq_bytes(loaded["qweight"][shard]) for shard in shards]
            return ByteWeight.of_shards(codes, scales, zeros, size, own_g_idx)
        codes = [gptq_weight(loaded["qweight"][shard], self.bits) for shard in shards]
        return GroupedWeight.of_shards(codes, scales, zeros, size, own_g_idx)

    def _check_sizes(self, part: LinearPart) -> None:
        """Check what remains to be checked once the tensors have the right shapes."""
        together = numbers_together(self.bits)
        if part.in_features % together:
            raise ModelLoadError(
                f"{part.name(0, 'qweight')}: {part.in_features} input features are not a multiple "
                f"of {together}, which GPTQ packs together; use another format of this model"
            )
        total = part.total_inputs or part.in_features
        are_cut = part.is_part_of_inputs and not self.desc_act and self.num_groups(total) > 1
        if are_cut and part.in_features % self.group_size:
            raise ModelLoadError(
                f"{part.name(0, 'scales')}: a rank's {part.in_features} input features cannot be "
                f"divided into groups of {self.group_size}; use a smaller tensor_parallel_size"
            )

    def _order(self, part: LinearPart, shard: int, g_idx: Tensor) -> Tensor | None:
        """Return a shard's groups of inputs; None if they are runs.

        Raises:
            CorruptFile: there are no such groups.
        """
        name = part.name(shard, "g_idx")
        total = part.total_inputs or part.in_features
        groups = self.num_groups(total)
        low, high = int(g_idx.min()), int(g_idx.max())
        if low < 0 or high >= groups:
            raise CorruptFile(
                f"{name} names group {low if low < 0 else high}; the tensors have groups 0 to "
                f"{groups - 1}; fetch the model again"
            )
        size = self.run_of(total)
        inputs = torch.arange(part.first_input, part.first_input + part.in_features)
        is_run = torch.equal(g_idx.long(), inputs // size)
        if not part.is_part_of_inputs:
            return None if is_run else g_idx
        if is_run and not self.desc_act:
            return None
        if not self.desc_act and groups > 1:
            raise ModelLoadError(
                f"{name} reorders inputs although desc_act is false; the layer cannot be divided "
                f"between ranks: use tensor_parallel_size 1"
            )
        return g_idx

    def apply(self, state: tuple[Product, ...], x: Tensor) -> Tensor:
        return _joined([weight.multiply(x) for weight in state])

    def apply_in_fp32(self, state: tuple[Product, ...], x: Tensor) -> Tensor:
        return _joined([weight.multiply_in_fp32(x) for weight in state])

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        """Return the memory of a layer, including the order of inputs, four bytes each."""
        order = 4 * in_features if self.desc_act else 0
        bits = self._bits(in_features, dtype_bytes)
        return out_features * in_features * bits / 8 + order

    def _bits(self, in_features: int, dtype_bytes: int = 2) -> float:
        if self.bits <= BITS:
            return GroupedMethod._bits(self, in_features)
        return bits_of_bytes(
            in_features,
            self.run_of(in_features),
            self.scale_dtype,
            self.device,
            dtype_bytes,
            is_symmetric=self.is_symmetric,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """The groups of inputs, compared by their numbers."""

    g_idx: Tensor | None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Order) or (self.g_idx is None) != (other.g_idx is None):
            return False
        if self.g_idx is None or other.g_idx is None:
            return True
        return torch.equal(self.g_idx, other.g_idx)


def _joined(products: list[Tensor]) -> Tensor:
    return products[0] if len(products) == 1 else torch.cat(products, -1)


class GptqFormat(StoredFormat):
    """GPTQ checkpoints, detected by `quant_method` of the configuration or by an old tool's side
    file."""

    side_file = "quantize_config.json"

    def __init__(self, config: Mapping[str, Any]) -> None:
        _check_config(config)
        self._bits: int = config["bits"]
        self._group_size: int = config["group_size"]
        self._desc_act: bool = config.get("desc_act", False)
        dynamic = _dynamic(config)
        self._sym: bool = config.get("sym", True) and not any(
            "sym" in _rule(dynamic, key) for key in dynamic
        )
        self._zeros_minus_one = _MINUS_ONE[_layout(config)]
        self._is_mixed = any(not str(key).startswith(_LEFT_OUT) for key in dynamic)
        """Whether some layers have other bits or groups than most."""

    @classmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        # AutoGPTQ's side file does not name the method.
        method = config.get("quant_method", "gptq" if "bits" in config else None)
        return cls(config) if method == "gptq" else None

    def is_slower_packed(self, layers: Mapping[str, QuantizedLayer], dtype: torch.dtype) -> bool:
        def like(layer: QuantizedLayer) -> GGUFType:
            assert isinstance(layer.method, GptqMethod)
            if layer.method.bits > BITS:
                return GGUFType.Q8_0
            return GGUFType.Q4_0 if layer.method.is_symmetric else GGUFType.Q4_K

        return is_slower_packed_like(layers.values(), dtype, like)

    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        return {name: self._layer(name, headers, device) for name in packed_layers(headers)}

    def _layer(self, name: str, headers: Headers, device: str) -> QuantizedLayer:
        needed = ("qweight", "qzeros", "scales", *(["g_idx"] if self._desc_act else []))
        for kind in needed:
            if f"{name}.{kind}" not in headers:
                raise MissingWeight(
                    f"the checkpoint lacks {name}.{kind}, which a GPTQ layer needs"
                    f"{' with desc_act' if kind == 'g_idx' else ''}; fetch the model again"
                )
        rows, columns = packed_shape("GPTQ", name, headers)
        bits, group_size = self._bits, self._group_size
        if self._is_mixed:
            bits, group_size = _own_bits_and_groups(name, headers, group_size)
        together = numbers_together(bits)
        if columns % together:
            raise ShapeMismatch(
                f"{name}.qweight has {columns} outputs; it must be a multiple of "
                f"{together}, whose zero points GPTQ packs together"
            )
        method = GptqMethod(
            bits=bits,
            group_size=group_size,
            desc_act=self._desc_act or (self._is_mixed and f"{name}.g_idx" in headers),
            zeros_minus_one=self._zeros_minus_one,
            scale_dtype=stored_scale_dtype(name, headers),
            has_g_idx=f"{name}.g_idx" in headers,
            sym=self._sym,
            device=device,
        )
        return QuantizedLayer(method, columns, 32 * rows // bits)


def _own_bits_and_groups(name: str, headers: Headers, usual: int) -> tuple[int, int]:
    """Return a layer's bits and group size from its tensors, where the configuration has rules by
    name.

    The rules are patterns, and a stranger's pattern could take endless time to match; the shapes
    show the result of the rules.

    Args:
        usual: the group size of most layers.

    Raises:
        ShapeMismatch: the tensors do not fit together.
    """
    rows, columns = headers[f"{name}.qweight"].shape
    zeros, scales = headers[f"{name}.qzeros"].shape, headers[f"{name}.scales"].shape
    bits = 32 * zeros[1] // columns if len(zeros) == 2 and columns else 0
    in_features = 32 * rows // bits if bits in _STORED_BITS else 0
    groups = scales[0] if len(scales) == 2 else 0
    if groups and in_features:
        if math.ceil(in_features / (in_features if usual == -1 else usual)) == groups:
            return bits, usual
        if in_features % groups == 0:
            return bits, in_features // groups
    raise ShapeMismatch(
        f"{name}.qzeros has shape {zeros} and scales {scales}, which do not fit {columns} "
        f"outputs of {', '.join(map(str, _STORED_BITS))} bits"
    )


def _layout(config: Mapping[str, Any]) -> Any:
    """Return the layout of the tensors, by default that of AutoGPTQ's first version."""
    if config.get("is_marlin_format") is True:
        return "marlin"
    return config.get("checkpoint_format") or config.get("format") or "gptq"


def _check_config(config: Mapping[str, Any]) -> None:
    """Check the keys of the configuration.

    Raises:
        ModelLoadError: a key is missing, nonsense or not supported; the message names it.
    """
    if config.get("bits") not in _STORED_BITS or isinstance(config.get("bits"), bool | float):
        raise unsupported("GPTQ", "bits", config.get("bits"), "2, 3, 4 or 8")
    check_group_size("GPTQ", config.get("group_size"))
    for key in ("desc_act", "sym"):
        if not isinstance(config.get(key, False), bool):
            raise unsupported("GPTQ", key, config[key], "true or false")
    layout = _layout(config)
    if not isinstance(layout, str) or layout not in _MINUS_ONE:
        raise unsupported("GPTQ", "checkpoint_format", layout, f"{' or '.join(_MINUS_ONE)}")
    if config.get("pack_dtype", "int32") != "int32":
        raise unsupported("GPTQ", "pack_dtype", config["pack_dtype"], "int32")
    if not isinstance(_dynamic(config), dict):
        raise unsupported(
            "GPTQ", "dynamic", config["dynamic"], "an object with rules by layer name"
        )


def _dynamic(config: Mapping[str, Any]) -> Any:
    """Return the rules for layers by patterns of their names."""
    return config.get("dynamic") or {}


def _rule(dynamic: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the changes that one rule makes."""
    rule = dynamic[key]
    return rule if isinstance(rule, dict) else {}
