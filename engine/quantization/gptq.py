"""GPTQ checkpoints with 4 bits, as AutoGPTQ and GPTQModel write them; they stay packed.

A layer has `qweight` [K / 8, N] and `qzeros` [G, N / 8] (int32, eight 4-bit numbers each), `scales`
[G, N] and `g_idx` [K], the group of each input. Groups are runs of `group_size` inputs unless
`desc_act` took inputs by their activations.

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
from engine.quantization.format import Headers, QuantizedLayer, StoredFormat
from engine.quantization.method import LinearMethod, LinearPart, TensorSpec, bias_tensors
from kernels import linear_w4a16
from kernels.linear_w4a16.layouts import PER_INT32, gptq_zeros
from kernels.linear_w4a16.reference import SYMMETRIC_ZERO, dequantize

BITS = 4
_SCALE_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_MINUS_ONE = {"gptq": True, "gptq_v2": False}
"""`checkpoint_format` → whether zero points are stored less one."""
_CHUNK_WEIGHTS = 1 << 20
"""Dequantised at a time."""


@dataclass(frozen=True, slots=True)
class GptqWeight:
    """What `kernels.linear_w4a16` takes beside activations, of outputs whose inputs have the same
    groups."""

    qweight: Tensor
    scales: Tensor
    zeros: Tensor | None
    group_size: int
    g_idx: Tensor | None
    bias: Tensor | None = None
    """fp32."""

    def multiply(self, x: Tensor) -> Tensor:
        """[T, K] → [T, N]."""
        return linear_w4a16(
            x, self.qweight, self.scales, self.zeros, self.group_size, self.g_idx, self.bias
        )

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """[N, K], new memory; the bias is left out."""
        num_inputs, num_outputs = PER_INT32 * self.qweight.shape[0], self.qweight.shape[1]
        weight = torch.empty(num_outputs, num_inputs, dtype=dtype, device=self.qweight.device)
        step = max(1, _CHUNK_WEIGHTS // num_inputs)
        for start in range(0, num_outputs, step):
            some = slice(start, start + step)
            zeros = None if self.zeros is None else self.zeros[:, some]
            weight[some] = dequantize(
                self.qweight[:, some], self.scales[:, some], zeros, self.group_size, self.g_idx
            ).T
        return weight


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqMethod(LinearMethod[tuple[GptqWeight, ...]]):
    """One product for neighbouring shards, or several where their inputs' groups differ."""

    group_size: int
    """Inputs that share a scale; -1: all."""
    desc_act: bool
    """The inputs of a group may lie anywhere."""
    zeros_minus_one: bool
    """Zero points are stored less one."""
    scale_dtype: torch.dtype
    has_g_idx: bool
    sym: bool
    """Zero points are 8, and not kept."""

    def _num_groups(self, in_features: int) -> int:
        return 1 if self.group_size == -1 else math.ceil(in_features / self.group_size)

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        """Groups are cut with the inputs where they are runs of them."""
        groups = self._num_groups(in_features)
        group_axis = None if self.desc_act or groups == 1 else 0
        int32 = (torch.int32,)
        specs = {
            "qweight": TensorSpec(
                shape=(math.ceil(in_features / PER_INT32), out_features),
                in_axis=0,
                out_axis=1,
                dtypes=int32,
            ),
            "qzeros": TensorSpec(
                shape=(groups, out_features // PER_INT32),
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

    def process(self, part: LinearPart) -> tuple[GptqWeight, ...]:
        weights = self._weights(part)
        bias = part.bias()
        if bias is None:
            return tuple(weights)
        sizes = [weight.qweight.shape[1] for weight in weights]
        return tuple(
            GptqWeight(one.qweight, one.scales, one.zeros, one.group_size, one.g_idx, its_bias)
            for one, its_bias in zip(weights, torch.split(bias.float(), sizes), strict=True)
        )

    def dequantised(self, part: LinearPart) -> Tensor:
        return torch.cat([one.dequantised(part.dtype) for one in self._weights(part)])

    def _weights(self, part: LinearPart) -> list[GptqWeight]:
        """Loaded tensors, checked, on the device; shards with the same groups together."""
        self._check_sizes(part)
        kinds = ("qweight", "qzeros", "scales", *(["g_idx"] if self.has_g_idx else []))
        loaded = {kind: part.shards(kind) for kind in kinds}
        shards = range(len(part.out_features))
        for shard in shards:
            _check_finite(part.name(shard, "scales"), loaded["scales"][shard])
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
    ) -> GptqWeight:
        zeros = torch.cat(
            [
                gptq_zeros(loaded["qzeros"][shard], minus_one=self.zeros_minus_one)
                for shard in shards
            ],
            1,
        )
        is_symmetric = bool((zeros == SYMMETRIC_ZERO).all())
        return GptqWeight(
            torch.cat([loaded["qweight"][shard] for shard in shards], 1).to(part.device),
            torch.cat([loaded["scales"][shard] for shard in shards], 1).to(part.device),
            None if is_symmetric else zeros.to(part.device),
            part.in_features if self.group_size == -1 else min(self.group_size, part.in_features),
            None if g_idx is None else g_idx.to(part.device, copy=True),
        )

    def _check_sizes(self, part: LinearPart) -> None:
        """What is left to check once the tensors have the shapes that the sizes ask for."""
        if part.in_features % PER_INT32:
            raise ModelLoadError(
                f"{part.name(0, 'qweight')}: {part.in_features} input features are no multiple of "
                f"{PER_INT32}, which GPTQ packs together; use another format of this model"
            )
        total = part.total_inputs or part.in_features
        are_cut = part.is_part_of_inputs and not self.desc_act and self._num_groups(total) > 1
        if are_cut and part.in_features % self.group_size:
            raise ModelLoadError(
                f"{part.name(0, 'scales')}: a rank's {part.in_features} input features are not "
                f"whole groups of {self.group_size}; use a smaller tensor_parallel_size"
            )

    def _order(self, part: LinearPart, shard: int, g_idx: Tensor) -> Tensor | None:
        """A shard's groups of inputs; None if they are runs.

        Raises:
            CorruptFile: there are no such groups.
        """
        name = part.name(shard, "g_idx")
        total = part.total_inputs or part.in_features
        groups = self._num_groups(total)
        low, high = int(g_idx.min()), int(g_idx.max())
        if low < 0 or high >= groups:
            raise CorruptFile(
                f"{name} names group {low if low < 0 else high}; the tensors have groups 0 to "
                f"{groups - 1}; fetch the model again"
            )
        size = total if self.group_size == -1 else self.group_size
        inputs = torch.arange(part.first_input, part.first_input + part.in_features)
        is_run = torch.equal(g_idx.long(), inputs // size)
        if not part.is_part_of_inputs:
            return None if is_run else g_idx
        if is_run and not self.desc_act:
            return None
        if not self.desc_act and groups > 1:
            raise ModelLoadError(
                f"{name} takes inputs in another order although desc_act is false; ranks cannot "
                f"divide this layer: use tensor_parallel_size 1"
            )
        return g_idx

    def apply(self, state: tuple[GptqWeight, ...], x: Tensor) -> Tensor:
        products = [weight.multiply(x) for weight in state]
        return products[0] if len(products) == 1 else torch.cat(products, -1)

    def apply_in_fp32(self, state: tuple[GptqWeight, ...], x: Tensor) -> Tensor:
        return self.apply(state, x.float())

    def _group_bits(self) -> int:
        """Of one group of an output."""
        return 8 * self.scale_dtype.itemsize + (0 if self.sym else 8)

    def bits_per_weight(self, dtype_bytes: int) -> float:
        """Without `g_idx`, four bytes per input."""
        return BITS + (0 if self.group_size == -1 else self._group_bits() / self.group_size)

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        groups = out_features * self._num_groups(in_features)
        order = 4 * in_features if self.desc_act else 0
        return (out_features * in_features * BITS + groups * self._group_bits()) / 8 + order

    @property
    def takes_plain_weights(self) -> bool:
        return False


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """Groups of inputs, compared by their numbers."""

    g_idx: Tensor | None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Order) or (self.g_idx is None) != (other.g_idx is None):
            return False
        if self.g_idx is None or other.g_idx is None:
            return True
        return torch.equal(self.g_idx, other.g_idx)


class GptqFormat(StoredFormat):
    """By `quant_method` of the configuration, or an old tool's side file."""

    side_file = "quantize_config.json"

    def __init__(self, config: Mapping[str, Any]) -> None:
        _check_config(config)
        self._group_size: int = config["group_size"]
        self._desc_act: bool = config.get("desc_act", False)
        self._sym: bool = config.get("sym", True)
        self._zeros_minus_one = _MINUS_ONE[_layout(config)]

    @classmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        # AutoGPTQ's side file does not name the method.
        method = config.get("quant_method", "gptq" if "bits" in config else None)
        return cls(config) if method == "gptq" else None

    def is_slower_packed(self, layers: Mapping[str, QuantizedLayer], dtype: torch.dtype) -> bool:
        """Yes, by far: on a CPU each product unpacks the weights anew, so far."""
        return True

    def layers(self, headers: Headers) -> dict[str, QuantizedLayer]:
        """Those that have a `qweight`: which are left out differs from model to model."""
        return {
            name.removesuffix(".qweight"): self._layer(name.removesuffix(".qweight"), headers)
            for name in headers
            if name.endswith(".qweight")
        }

    def _layer(self, name: str, headers: Headers) -> QuantizedLayer:
        needed = ("qweight", "qzeros", "scales", *(["g_idx"] if self._desc_act else []))
        for kind in needed:
            if f"{name}.{kind}" not in headers:
                raise MissingWeight(
                    f"the checkpoint lacks {name}.{kind}, which a GPTQ layer needs"
                    f"{' with desc_act' if kind == 'g_idx' else ''}; fetch the model again"
                )
        packed, scales = headers[f"{name}.qweight"], headers[f"{name}.scales"]
        if len(packed.shape) != 2:
            raise ShapeMismatch(
                f"{name}.qweight has shape {packed.shape}; GPTQ packs a matrix of two dimensions"
            )
        if packed.shape[1] % PER_INT32:
            raise ShapeMismatch(
                f"{name}.qweight has {packed.shape[1]} outputs; GPTQ packs the zero points of "
                f"{PER_INT32} together"
            )
        if scales.type not in _SCALE_DTYPES:
            raise ShapeMismatch(
                f"{name}.scales holds {scales.type}; {', '.join(_SCALE_DTYPES)} are supported"
            )
        method = GptqMethod(
            group_size=self._group_size,
            desc_act=self._desc_act,
            zeros_minus_one=self._zeros_minus_one,
            scale_dtype=_SCALE_DTYPES[scales.type],
            has_g_idx=f"{name}.g_idx" in headers,
            sym=self._sym,
        )
        return QuantizedLayer(method, packed.shape[1], PER_INT32 * packed.shape[0])


def _layout(config: Mapping[str, Any]) -> Any:
    """How tensors are laid out; without a word as AutoGPTQ's first version did."""
    if config.get("is_marlin_format") is True:
        return "marlin"
    return config.get("checkpoint_format") or config.get("format") or "gptq"


def _check_config(config: Mapping[str, Any]) -> None:
    """
    Raises:
        ModelLoadError: a key is missing, nonsense or not supported; names it.
    """
    if config.get("bits") != BITS or isinstance(config.get("bits"), bool):
        raise _unsupported("bits", config.get("bits"), f"{BITS} bits are")
    size: Any = config.get("group_size")
    is_size = isinstance(size, int) and not isinstance(size, bool)
    if not is_size or not (size == -1 or 0 < size < 1 << 31):
        raise _unsupported("group_size", size, "a positive number, and -1 for one group, are")
    for key in ("desc_act", "sym"):
        if not isinstance(config.get(key, False), bool):
            raise _unsupported(key, config[key], "true and false are")
    layout = _layout(config)
    if not isinstance(layout, str) or layout not in _MINUS_ONE:
        raise _unsupported("checkpoint_format", layout, f"{' and '.join(_MINUS_ONE)} are")
    if config.get("pack_dtype", "int32") != "int32":
        raise _unsupported("pack_dtype", config["pack_dtype"], "int32 is")
    dynamic = config.get("dynamic") or {}
    if not isinstance(dynamic, dict) or any(not str(key).startswith("-:") for key in dynamic):
        raise _unsupported("dynamic", dynamic, "layers that are left out (-:) are")


def _unsupported(key: str, value: object, what: str) -> ModelLoadError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return ModelLoadError(
        f"quantization_config: {key} is {shown}; of GPTQ {what} supported; use another variant of "
        f"the model, or the unquantised one"
    )


def _check_finite(name: str, scales: Tensor) -> None:
    if not torch.isfinite(scales).all():
        raise CorruptFile(f"{name} has values that are not numbers; fetch the model again")
