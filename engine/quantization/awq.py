"""AWQ checkpoints with 4 bits, as AutoAWQ writes them; they stay packed.

An int32 has eight numbers. A layer of version `gemm` has `qweight` [K, N / 8] and `qzeros` [G, N /
8], in which eight outputs are interleaved, and `scales` [G, N]; one of version `gemv` has `qweight`
[N, K / 8], `qzeros` [N, W] and `scales` [N, 8 W], where W allows more than G groups. Without zero
points (`zero_point` is false) all are 8, and `qzeros` may be missing.

Paper: Lin et al. 2023, arXiv:2306.00978.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from engine.errors import MissingWeight, ModelLoadError
from engine.quantization.format import Headers, QuantizedLayer, StoredFormat
from engine.quantization.int4_groups import (
    BITS,
    GroupedMethod,
    GroupedWeight,
    GroupPanels,
    check_finite,
    check_group_size,
    is_slower_packed,
    packed_layers,
    packed_shape,
    stored_scale_dtype,
    unsupported,
)
from engine.quantization.method import LinearPart, TensorSpec, bias_tensors
from kernels.linear_w4a16.layouts import PER_INT32, from_awq, gptq_zeros

_KINDS = ("qweight", "qzeros", "scales")
_EIGHTS = 0x88888888 - (1 << 32)
"""An int32 of eight zero points that are 8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqMethod(GroupedMethod[GroupedWeight | GroupPanels]):
    """A method with one product for neighbouring shards, whose groups are runs of inputs."""

    sym: bool
    """Whether all zero points are 8."""
    has_zeros: bool
    """Whether zero points are stored."""

    @property
    def is_symmetric(self) -> bool:
        return self.sym

    @property
    def may_cut_groups(self) -> bool:
        """Whether the last group may have fewer inputs than the others."""
        return True

    def process(self, part: LinearPart) -> GroupedWeight | GroupPanels:
        return self._weight(part).arranged(part.device, part.dtype, part.bias())

    def dequantised(self, part: LinearPart) -> Tensor:
        return self._weight(part).dequantised(part.dtype).to(part.device)

    def _weight(self, part: LinearPart) -> GroupedWeight:
        """Build the weight from loaded tensors."""
        size = self.run_of(part.in_features)
        may_cut_groups = self.may_cut_groups and not part.is_part_of_inputs
        if part.in_features % PER_INT32 or (part.in_features % size and not may_cut_groups):
            raise ModelLoadError(
                f"{part.name(0, 'qweight')}: {part.in_features} input features cannot be divided "
                f"into groups of {size}; use another format of this model, or a smaller "
                f"tensor_parallel_size"
            )
        loaded = {kind: part.shards(kind) for kind in _KINDS if self._is_stored(kind)}
        if not self.has_zeros:
            loaded["qzeros"] = [
                torch.full((len(one), one.shape[1] // PER_INT32), _EIGHTS, dtype=torch.int32)
                for one in loaded["scales"]
            ]
        shards = range(len(part.out_features))
        for shard in shards:
            check_finite(part.name(shard, "scales"), loaded["scales"][shard])
        groups = self.num_groups(part.in_features)
        parts = [
            self._in_kernels_layout(*(loaded[kind][shard] for kind in _KINDS), groups=groups)
            for shard in shards
        ]
        qweight, zeros, scales = zip(*parts, strict=True)
        return GroupedWeight.of_shards(qweight, scales, zeros, min(size, part.in_features))

    def _is_stored(self, kind: str) -> bool:
        return kind != "qzeros" or self.has_zeros

    @abstractmethod
    def _in_kernels_layout(
        self, qweight: Tensor, qzeros: Tensor, scales: Tensor, *, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Convert `qweight`, zero points and scales of a shard to the layouts of `linear_w4a16`."""

    def apply(self, state: GroupedWeight | GroupPanels, x: Tensor) -> Tensor:
        return state.multiply(x)

    def apply_in_fp32(self, state: GroupedWeight | GroupPanels, x: Tensor) -> Tensor:
        return state.multiply_in_fp32(x)


class _Gemm(AwqMethod):
    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        groups = self.num_groups(in_features)
        group_axis = None if groups == 1 else 0
        packed = out_features // PER_INT32
        int32 = (torch.int32,)
        specs = {
            "qweight": TensorSpec(shape=(in_features, packed), in_axis=0, out_axis=1, dtypes=int32),
            "qzeros": TensorSpec(
                shape=(groups, packed), in_axis=group_axis, out_axis=1, dtypes=int32
            ),
            "scales": TensorSpec(
                shape=(groups, out_features),
                in_axis=group_axis,
                out_axis=1,
                dtypes=(self.scale_dtype,),
            ),
        }
        stored = {kind: spec for kind, spec in specs.items() if self._is_stored(kind)}
        return stored | bias_tensors(out_features, has_bias)

    def _in_kernels_layout(
        self, qweight: Tensor, qzeros: Tensor, scales: Tensor, *, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return (*from_awq(qweight, qzeros), scales)


class _Gemv(AwqMethod):
    @property
    def may_cut_groups(self) -> bool:
        return False

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        """Return the tensor specs. Ranks cannot divide the inputs, since zero points of several
        groups share an int32."""
        width = _zeros_width(in_features, self.run_of(in_features))
        int32 = (torch.int32,)
        specs = {
            "qweight": TensorSpec(
                shape=(out_features, in_features // PER_INT32), out_axis=0, in_axis=1, dtypes=int32
            ),
            "qzeros": TensorSpec(shape=(out_features, width), out_axis=0, dtypes=int32),
            "scales": TensorSpec(
                shape=(out_features, PER_INT32 * width), out_axis=0, dtypes=(self.scale_dtype,)
            ),
        }
        stored = {kind: spec for kind, spec in specs.items() if self._is_stored(kind)}
        return stored | bias_tensors(out_features, has_bias)

    def _weight(self, part: LinearPart) -> GroupedWeight:
        if part.is_part_of_inputs:
            raise ModelLoadError(
                f"{part.name(0, 'qweight')}: AWQ's version gemv cannot be divided between ranks; "
                "use tensor_parallel_size 1, or the model in version gemm"
            )
        return super()._weight(part)

    def _in_kernels_layout(
        self, qweight: Tensor, qzeros: Tensor, scales: Tensor, *, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        zeros = gptq_zeros(qzeros, minus_one=False)[:, :groups]
        return qweight.T.contiguous(), zeros.T, scales[:, :groups].T


_VERSIONS = {"gemm": _Gemm, "gemv": _Gemv}


class AwqFormat(StoredFormat):
    """AWQ checkpoints, detected by `quant_method` of the configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        _check_config(config)
        self._group_size: int = _group_size(config)
        self._method = _VERSIONS[_version(config)]
        self._sym: bool = not config.get("zero_point", True)

    @classmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        return cls(config) if config.get("quant_method") == "awq" else None

    def is_slower_packed(self, layers: Mapping[str, QuantizedLayer], dtype: torch.dtype) -> bool:
        return is_slower_packed(layers.values(), dtype, is_symmetric=self._sym)

    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        """Find the quantised layers; `modules_to_not_convert` names the others by parts of their
        names."""
        return {name: self._layer(name, headers, device) for name in packed_layers(headers)}

    def _layer(self, name: str, headers: Headers, device: str) -> QuantizedLayer:
        has_zeros = f"{name}.qzeros" in headers
        for kind in _KINDS:
            is_needed = kind != "qzeros" or not self._sym
            if is_needed and f"{name}.{kind}" not in headers:
                raise MissingWeight(
                    f"the checkpoint lacks {name}.{kind}, which an AWQ layer needs; fetch the "
                    "model again"
                )
        rows, columns = packed_shape("AWQ", name, headers)
        method = self._method(
            group_size=self._group_size,
            scale_dtype=stored_scale_dtype(name, headers),
            sym=self._sym,
            has_zeros=has_zeros,
            device=device,
        )
        if self._method is _Gemm:
            return QuantizedLayer(method, PER_INT32 * columns, rows)
        return QuantizedLayer(method, rows, PER_INT32 * columns)


def _zeros_width(in_features: int, group_size: int) -> int:
    """Return int32 numbers per output, aligned as AutoAWQ's kernels require."""
    multiple = {64: 2, 32: 4}.get(group_size, 1)
    words = math.ceil(in_features // group_size / PER_INT32)
    return math.ceil(words / multiple) * multiple


def _group_size(config: Mapping[str, Any]) -> Any:
    return config.get("group_size", config.get("q_group_size", 128))


def _version(config: Mapping[str, Any]) -> Any:
    version = config.get("version", "gemm")
    return version.lower() if isinstance(version, str) else version


def _check_config(config: Mapping[str, Any]) -> None:
    """Check the keys of the configuration.

    Raises:
        ModelLoadError: a key is missing, nonsense or not supported; the message names it.
    """
    bits = config.get("bits", config.get("w_bit"))
    if bits != BITS or isinstance(bits, bool | float):
        raise unsupported("AWQ", "bits", bits, str(BITS))
    check_group_size("AWQ", _group_size(config))
    if not isinstance(config.get("zero_point", True), bool):
        raise unsupported("AWQ", "zero_point", config["zero_point"], "true or false")
    version = _version(config)
    if not isinstance(version, str) or version not in _VERSIONS:
        raise unsupported("AWQ", "version", version, f"{' or '.join(_VERSIONS)}")
