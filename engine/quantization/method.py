"""How a linear layer keeps its weights and multiplies by them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from engine.errors import ShapeMismatch
from engine.quantization.method_module import MethodModule

State = TypeVar("State")
RowLookup = Callable[[Tensor], Tensor]
"""[T] int64 → [T, in], new memory in the layer's dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of a layer as the checkpoint has it, before it is divided between ranks."""

    shape: tuple[int, ...]
    out_axis: int | None = None
    """Along which output features lie; None: every rank needs it whole."""
    in_axis: int | None = None
    """The same for input features."""
    dtypes: tuple[torch.dtype, ...] | None = None
    """That it may have; None: any."""
    is_added: bool = False
    """Added to the product: where ranks' results are summed, one rank alone brings it."""
    is_most: bool = False
    """A vector may be shorter."""

    def check(self, name: str, tensor: Tensor) -> None:
        """
        Raises:
            ShapeMismatch: another shape or dtype; names the tensor.
        """
        fits = tuple(tensor.shape) == self.shape
        if self.is_most:
            fits = tensor.dim() == 1 and len(tensor) <= self.shape[0]
        if not fits:
            raise ShapeMismatch(
                f"{name} has shape {tuple(tensor.shape)}; the configuration says {self.shape}"
            )
        if self.dtypes is not None and tensor.dtype not in self.dtypes:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            found = str(tensor.dtype).removeprefix("torch.")
            raise ShapeMismatch(f"{name} holds {found}; the configuration says {wanted}")


@dataclass(slots=True, kw_only=True)
class LinearPart:
    """Loaded tensors of neighbouring output features that share a method, until it has them all.

    Sizes are this rank's.
    """

    names: tuple[str, ...]
    """Of the shards' layers in the checkpoint."""
    in_features: int
    out_features: tuple[int, ...]
    """Per shard."""
    has_bias: bool
    dtype: torch.dtype
    """Of activations."""
    device: torch.device
    first_input: int = 0
    """Input features before this rank's."""
    total_inputs: int | None = None
    """Of all ranks; None: `in_features`."""
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_part_of_inputs(self) -> bool:
        """Whether other ranks have other input features."""
        return self.total_inputs not in (None, self.in_features)

    def take(self, shard: int, kind: str, tensor: Tensor) -> None:
        """Keep a loaded tensor of one shard."""
        self.tensors[f"{shard}.{kind}"] = tensor

    def name(self, shard: int, kind: str) -> str:
        """Of a tensor in the checkpoint."""
        return f"{self.names[shard]}.{kind}"

    def shards(self, kind: str) -> list[Tensor]:
        """The shards' loaded tensors, maybe of a file's memory; it forgets them."""
        return [self.tensors.pop(f"{shard}.{kind}") for shard in range(len(self.out_features))]

    def concatenated(self, kind: str) -> Tensor:
        """The same as one new tensor in the layer's dtype, outputs first."""
        shards = self.shards(kind)
        shape = (sum(self.out_features), *shards[0].shape[1:])
        result = torch.empty(shape, dtype=self.dtype, device=self.device)
        for place, shard in zip(torch.split(result, list(self.out_features)), shards, strict=True):
            place.copy_(shard)
        return result

    def concatenated_as_loaded(self, kind: str) -> Tensor:
        """As one new tensor in the dtype and on the device that they came in, outputs first."""
        return torch.cat(self.shards(kind))

    def bias(self) -> Tensor | None:
        """[outputs] in the layer's dtype, if it has one."""
        return self.concatenated("bias") if self.has_bias else None


class LinearMethod(ABC, Generic[State]):
    """One weight format. Methods that are equal may serve neighbouring shards together.

    What a method makes of loaded tensors is its own: whoever has it hands it back to `apply`.
    """

    __slots__ = ()

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        """What the checkpoint has for one shard, by kind, the last part of a name (`weight` ...).
        A plain weight, unless a format says otherwise."""
        specs = {"weight": TensorSpec(shape=(out_features, in_features), out_axis=0, in_axis=1)}
        return specs | bias_tensors(out_features, has_bias)

    @abstractmethod
    def process(self, part: LinearPart) -> State:
        """Bring the loaded tensors of a part into the form that `apply` uses.

        Raises:
            ModelLoadError: numbers that cannot be; names the tensor.
        """

    @abstractmethod
    def apply(self, state: State, x: Tensor) -> Tensor:
        """[T, in] → [T, sum of the part's out_features]."""

    def apply_in_fp32(self, state: State, x: Tensor) -> Tensor:
        """The same in fp32, as precisely as the method can: logits need more than bf16 gives."""
        return self.apply(state, x).float()

    @abstractmethod
    def bits_per_weight(self, dtype_bytes: int) -> float:
        """In memory, scales included; activations have numbers of `dtype_bytes`."""

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        """A layer's memory, without its bias."""
        return out_features * in_features * self.bits_per_weight(dtype_bytes) / 8

    @property
    def takes_plain_weights(self) -> bool:
        """Whether `arrange` makes what `apply` uses of a plain weight."""
        return True

    def arrange(self, weight: Tensor, bias: Tensor | None = None) -> State:
        """Keep a plain weight [out, in], of another layer for example; a packed one is a copy."""
        raise NotImplementedError

    def row_lookup(self, state: State, dtype: torch.dtype) -> RowLookup | None:
        """What finds single rows of the weight, so that an embedding that is the output layer, too,
        needs none of its own; None: rows of what `apply` uses are others, or hard to find."""
        return None

    def lends_rows(self, device: str) -> bool:
        """Whether `row_lookup` finds rows of what the checkpoint has packed, kept on a device."""
        return False

    def dequantised(self, part: LinearPart) -> Tensor:
        """The plain weight [out, in] of loaded tensors, in new memory; the bias stays in `part`."""
        return part.concatenated("weight")

    def module(self, state: State, in_features: int, out_features: int) -> nn.Module:
        """In the place of a `torch.nn.Linear`: [..., in] → [..., out]."""
        return MethodModule(self.apply, state, in_features, out_features)


def bias_tensors(out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
    """A layer's bias, if it has one."""
    return (
        {"bias": TensorSpec(shape=(out_features,), out_axis=0, is_added=True)} if has_bias else {}
    )
