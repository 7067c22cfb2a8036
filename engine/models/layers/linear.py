"""A linear layer of one or several checkpoint tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from engine.models.forward_context import ForwardContext
from engine.models.layers.parallel import SINGLE, TensorParallel
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot
from engine.quantization.method import LinearMethod, LinearPart, TensorSpec

Partition = Literal["outputs", "inputs", "none"]
"""The dimension that tensor-parallel ranks divide: output features, or input features, whose
results are summed."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The output features of one checkpoint tensor, before they are divided between ranks."""

    name: str
    """The tensor's last name in the checkpoint, such as `q_proj`."""
    out_features: int
    heads: int = 0
    """The number of key/value heads that they make up, as ranks may have the same ones
    (`TensorParallel.among`); 0 for other features."""
    pieces: tuple["Shard", ...] = ()
    """The parts of a tensor that combines several, such as `qkv_proj`, each divided between ranks.
    Empty for a single one."""

    def own_features(self, parallel: TensorParallel) -> int:
        """Return the number of output features that a rank has."""
        return sum(
            parallel.among(one.heads).share(one.out_features, "output features")
            for one in self.pieces or (self,)
        )

    def cut(self, tensor: Tensor, axis: int, name: str, parallel: TensorParallel) -> Tensor:
        """Return a rank's part of the tensor, or of one with a value for several outputs."""
        if not self.pieces:
            return parallel.among(self.heads).cut(tensor, axis, name)
        packed = self.out_features // tensor.shape[axis]
        split = torch.split(tensor, [one.out_features // packed for one in self.pieces], axis)
        parts = zip(self.pieces, split, strict=True)
        return torch.cat([one.cut(part, axis, name, parallel) for one, part in parts], axis)


def fused_shard(name: str, shards: Sequence[Shard]) -> Shard:
    """Combine shards that the checkpoint has in one tensor, in their order."""
    return Shard(name, sum(shard.out_features for shard in shards), pieces=tuple(shards))


class Linear(nn.Module, WeightOwner):
    """A layer that computes `x @ weight.T + bias`. Combined layers (q, k, v; gate, up) list their
    shards in order.

    Neighbouring shards of the same linear method become one multiplication.
    """

    takes_adapters: ClassVar[bool] = True
    """Whether `forward` adds the changes of the rows' adapters."""

    def __init__(
        self,
        in_features: int,
        shards: Sequence[Shard],
        *,
        bias: bool = False,
        partition: Partition = "none",
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.shards = tuple(shards)
        self.bias = bias
        self.partition = partition
        self.path = ""
        """The path in the model, set by `create_weights`."""
        self.adds_ranks = partition == "inputs"
        """Whether `forward` adds up the results of ranks with different inputs."""
        self.parallel = SINGLE
        """The ranks that share the layer, set by `create_weights`."""
        self._loading: list[tuple[LinearMethod[Any], LinearPart]] = []
        self._parts: list[tuple[LinearMethod[Any], Any]] = []
        """The methods, each with its state for some shards."""

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, in] to [T, out], with the changes of the rows' adapters."""
        method, state = self._parts[0]
        y: Tensor = method.apply(state, x)
        if len(self._parts) > 1:
            y = torch.cat((y, *(method.apply(state, x) for method, state in self._parts[1:])), -1)
        if ctx.adapters is not None:
            ctx.adapters.add(self.path, x, y)
        return self.parallel.sum(y) if self.adds_ranks else y

    __call__ = forward

    @property
    def shard_paths(self) -> list[str]:
        """The checkpoint's names of the shards' layers, such as `model.layers.0.mlp.up_proj`."""
        neighbours = self.path.rpartition(".")[0]
        return [f"{neighbours}.{shard.name}".lstrip(".") for shard in self.shards]

    @property
    def places(self) -> dict[str, slice]:
        """The slice of each shard's outputs, by the checkpoint's name of its layer."""
        found, first = {}, 0
        for path, shard in zip(self.shard_paths, self.shards, strict=True):
            found[path] = slice(first, first + shard.out_features)
            first += shard.out_features
        return found

    @property
    def state(self) -> object:
        """The state of the layer's method; None if it has several."""
        return self._parts[0][1] if len(self._parts) == 1 else None

    def in_fp32(self, x: Tensor) -> Tensor:
        """Compute [T, in] → [T, out] without adapters, as precisely as the weights' format
        allows."""
        parts = [method.apply_in_fp32(state, x) for method, state in self._parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self.path = path
        self.parallel = options.parallel
        self._loading = []
        names = dict(zip(self.shards, self.shard_paths, strict=True))
        slots: dict[str, WeightSlot] = {}
        for method, group in groupby(self.shards, lambda s: options.method_for(names[s])):
            shards = list(group)
            part = self._create_part(shards, [names[shard] for shard in shards], options)
            self._loading.append((method, part))
            for index, shard in enumerate(shards):
                specs = method.tensors(self.in_features, shard.out_features, self.bias)
                for kind, spec in specs.items():
                    load = self._loader(part, index, kind, spec, shard)
                    slots[part.name(index, kind)] = WeightSlot(spec, load)
        return slots

    def process_weights_after_loading(self) -> None:
        self._parts = [(method, method.process(part)) for method, part in self._loading]
        self._loading = []

    def _create_part(
        self, shards: Sequence[Shard], names: Sequence[str], options: WeightOptions
    ) -> LinearPart:
        """Create the part for some shards, with the sizes that this rank has of them."""
        in_features = self.in_features
        out_features = tuple(shard.out_features for shard in shards)
        first_input = 0
        if self.partition == "inputs":
            in_features = options.parallel.share(in_features, "input features")
            first_input = options.parallel.rank * in_features
        elif self.partition == "outputs":
            out_features = tuple(shard.own_features(options.parallel) for shard in shards)
        return LinearPart(
            names=tuple(names),
            in_features=in_features,
            out_features=out_features,
            has_bias=self.bias,
            dtype=options.dtype,
            device=options.device,
            first_input=first_input,
            total_inputs=self.in_features,
        )

    def _loader(
        self, part: LinearPart, index: int, kind: str, spec: TensorSpec, shard: Shard
    ) -> Callable[[Tensor], None]:
        name = part.name(index, kind)
        return lambda tensor: part.take(index, kind, self._own(tensor, spec, name, shard))

    def _own(self, tensor: Tensor, spec: TensorSpec, name: str, shard: Shard) -> Tensor:
        """Cut this rank's part out of a checkpoint tensor."""
        parallel = self.parallel
        if parallel.size == 1 or self.partition == "none":
            return tensor
        if self.partition == "outputs":
            axis = spec.out_axis
            return tensor if axis is None else shard.cut(tensor, axis, name, parallel)
        if spec.in_axis is not None:
            return parallel.cut(tensor, spec.in_axis, name)
        if spec.is_added and parallel.rank > 0:
            return torch.zeros_like(tensor)
        return tensor
