"""Layers that differ from another format's in the names of their tensors alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from engine.quantization.format import Headers, QuantizedLayer
from engine.quantization.method import LinearMethod, LinearPart, TensorSpec


@dataclass(frozen=True, slots=True)
class RenamedMethod(LinearMethod[Any]):
    """Another method with other kinds of tensors."""

    method: LinearMethod[Any]
    names: tuple[tuple[str, str], ...]
    """Kinds of the method, each with the checkpoint's."""

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        names = dict(self.names)
        specs = self.method.tensors(in_features, out_features, has_bias)
        return {names.get(kind, kind): spec for kind, spec in specs.items()}

    def process(self, part: LinearPart) -> Any:
        return self.method.process(self._renamed(part))

    def dequantised(self, part: LinearPart) -> Tensor:
        renamed = self._renamed(part)
        weight = self.method.dequantised(renamed)
        part.tensors = renamed.tensors
        return weight

    def _renamed(self, part: LinearPart) -> LinearPart:
        names = {stored: kind for kind, stored in self.names}
        tensors = {}
        for name, tensor in part.tensors.items():
            shard, _, kind = name.partition(".")
            tensors[f"{shard}.{names.get(kind, kind)}"] = tensor
        return replace(part, tensors=tensors, stored_kinds=dict(self.names))

    def apply(self, state: Any, x: Tensor) -> Tensor:
        return self.method.apply(state, x)

    def apply_in_fp32(self, state: Any, x: Tensor) -> Tensor:
        return self.method.apply_in_fp32(state, x)

    def bits_per_weight(self, dtype_bytes: int) -> float:
        return self.method.bits_per_weight(dtype_bytes)

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        return self.method.num_bytes(out_features, in_features, dtype_bytes)

    @property
    def takes_plain_weights(self) -> bool:
        return self.method.takes_plain_weights


def renamed_layer(
    name: str,
    headers: Headers,
    names: Mapping[str, str],
    describe: Callable[[Headers], QuantizedLayer],
) -> QuantizedLayer:
    """Describe a layer whose tensors have other names.

    Args:
        names: the checkpoint's kinds of tensors, by those of the other format.
        describe: describes the layer by headers with the other format's names.
    """
    own = {
        f"{name}.{kind}": headers[f"{name}.{stored}"]
        for kind, stored in names.items()
        if f"{name}.{stored}" in headers
    }
    found = describe({**headers, **own})
    method = RenamedMethod(found.method, tuple(names.items()))
    return QuantizedLayer(method, found.out_features, found.in_features)
