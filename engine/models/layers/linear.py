"""A linear layer of one or several checkpoint tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from engine.models.forward_context import ForwardContext
from engine.models.layers.linear_method import LinearMethod, LinearPart
from engine.models.layers.parallel import SINGLE, TensorParallel
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot

Partition = Literal["outputs", "inputs", "none"]
"""What tensor-parallel ranks divide: output features, input features (results are summed)."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Output features that one checkpoint tensor brings, before they are divided between ranks."""

    name: str
    """The checkpoint's name beside this layer, such as `q_proj`."""
    out_features: int


class Linear(nn.Module, WeightOwner):
    """`x @ weight.T + bias`. Packed layers (q, k, v; gate, up) list their shards in order.

    Neighbouring shards of the same linear method become one multiplication.
    """

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
        self._parallel = SINGLE
        self._parts: list[tuple[LinearMethod, LinearPart]] = []

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, in] → [T, out]. `ctx` is there for layers that add a LoRA adapter per row."""
        method, part = self._parts[0]
        y = method.apply(part, x)
        if len(self._parts) > 1:
            y = torch.cat((y, *(method.apply(part, x) for method, part in self._parts[1:])), -1)
        return self._parallel.sum(y) if self.partition == "inputs" else y

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self._parallel = options.parallel
        self._parts = []
        neighbours = path.rpartition(".")[0]
        names = {shard: f"{neighbours}.{shard.name}".lstrip(".") for shard in self.shards}
        slots: dict[str, WeightSlot] = {}
        for method, group in groupby(self.shards, lambda s: options.method_for(names[s])):
            shards = list(group)
            part = self._create_part(shards, options)
            self._parts.append((method, part))
            for index, shard in enumerate(shards):
                kinds = method.create_weights(self.in_features, shard.out_features, self.bias)
                for kind, shape in kinds.items():
                    load = self._loader(part, index, kind)
                    slots[f"{names[shard]}.{kind}"] = WeightSlot(shape, load)
        return slots

    def process_weights_after_loading(self) -> None:
        for method, part in self._parts:
            method.process_weights_after_loading(part)

    def _create_part(self, shards: Sequence[Shard], options: WeightOptions) -> LinearPart:
        """The sizes this rank has of some shards."""
        in_features = self.in_features
        out_features = tuple(shard.out_features for shard in shards)
        if self.partition == "inputs":
            in_features = options.parallel.share(in_features, "input features")
        elif self.partition == "outputs":
            out_features = tuple(options.parallel.share(o, "output features") for o in out_features)
        return LinearPart(
            in_features=in_features,
            out_features=out_features,
            has_bias=self.bias,
            dtype=options.dtype,
            device=options.device,
        )

    def _loader(self, part: LinearPart, index: int, kind: str):  # type: ignore[no-untyped-def]
        return lambda tensor: part.take(index, kind, self._own(tensor, kind))

    def _own(self, tensor: Tensor, kind: str) -> Tensor:
        """This rank's part of a checkpoint tensor."""
        parallel: TensorParallel = self._parallel
        if parallel.size == 1 or self.partition == "none":
            return tensor
        if self.partition == "outputs":
            return tensor.chunk(parallel.size, 0)[parallel.rank]
        if kind == "bias":
            # The ranks' results are summed: only one may bring the bias.
            return tensor if parallel.rank == 0 else torch.zeros_like(tensor)
        return tensor.chunk(parallel.size, 1)[parallel.rank]
