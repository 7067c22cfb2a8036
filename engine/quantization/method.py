"""The methods by which a linear layer keeps its weights and multiplies by them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from engine.errors import ShapeMismatch
from engine.quantization.method_module import MethodModule

State = TypeVar("State")
RowLookup = Callable[[Tensor], Tensor]
"""A function that looks up rows: [T] int64 → [T, in], new memory in the layer's dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of a layer in the checkpoint, before it is divided between ranks."""

    shape: tuple[int, ...]
    out_axis: int | None = None
    """The axis of output features; None if every rank needs the whole tensor."""
    in_axis: int | None = None
    """The axis of input features; None if every rank needs the whole tensor."""
    dtypes: tuple[torch.dtype, ...] | None = None
    """The dtypes that the tensor may have; None for any."""
    is_added: bool = False
    """Whether the tensor is added to the product: where ranks' results are summed, only one rank
    adds it."""
    is_most: bool = False
    """Whether a vector may be shorter than `shape`."""
    ignores_ones: bool = False
    """Whether axes of length 1 may be missing, as in GGUF files."""

    def check(self, name: str, tensor: Tensor) -> None:
        """Check a loaded tensor.

        Raises:
            ShapeMismatch: the shape or dtype is wrong; the message names the tensor.
        """
        fits = tuple(tensor.shape) == self.shape
        if self.is_most:
            fits = tensor.dim() == 1 and len(tensor) <= self.shape[0]
        if self.ignores_ones:
            fits = [n for n in tensor.shape if n > 1] == [n for n in self.shape if n > 1]
        if not fits:
            raise ShapeMismatch(
                f"{name} has shape {tuple(tensor.shape)}; the configuration needs {self.shape}"
            )
        if self.dtypes is not None and tensor.dtype not in self.dtypes:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            found = str(tensor.dtype).removeprefix("torch.")
            raise ShapeMismatch(f"{name} has type {found}; the configuration needs {wanted}")


@dataclass(slots=True, kw_only=True)
class LinearPart:
    """The loaded tensors of neighbouring output features that share a method, until all are there.

    Sizes are those of this rank.
    """

    names: tuple[str, ...]
    """The names of the shards' layers in the checkpoint."""
    in_features: int
    out_features: tuple[int, ...]
    """The output features of each shard."""
    has_bias: bool
    dtype: torch.dtype
    """The dtype of activations."""
    device: torch.device
    first_input: int = 0
    """Input features of the ranks before this one."""
    total_inputs: int | None = None
    """Input features of all ranks; None means `in_features`."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    stored_kinds: Mapping[str, str] = field(default_factory=dict)
    """The kinds of tensors in the checkpoint by those of the method, where they differ."""

    @property
    def is_part_of_inputs(self) -> bool:
        """Whether other ranks have other input features."""
        return self.total_inputs not in (None, self.in_features)

    def take(self, shard: int, kind: str, tensor: Tensor) -> None:
        """Keep a loaded tensor of one shard."""
        self.tensors[f"{shard}.{kind}"] = tensor

    def name(self, shard: int, kind: str) -> str:
        """Return the name of a shard's tensor in the checkpoint."""
        return f"{self.names[shard]}.{self.stored_kinds.get(kind, kind)}"

    def shards(self, kind: str) -> list[Tensor]:
        """Return the shards' loaded tensors, which may lie in a file's memory, and forget them."""
        return [self.tensors.pop(f"{shard}.{kind}") for shard in range(len(self.out_features))]

    def concatenated(self, kind: str) -> Tensor:
        """Concatenate the shards' tensors to a new one in the layer's dtype, outputs first."""
        shards = self.shards(kind)
        shape = (sum(self.out_features), *shards[0].shape[1:])
        result = torch.empty(shape, dtype=self.dtype, device=self.device)
        for place, shard in zip(torch.split(result, list(self.out_features)), shards, strict=True):
            place.copy_(shard)
        return result

    def concatenated_as_loaded(self, kind: str) -> Tensor:
        """Concatenate the shards' tensors in the dtype and on the device that they came in, outputs
        first. A single one is returned as it is, and may lie in a file's memory: convert it."""
        shards = self.shards(kind)
        return shards[0] if len(shards) == 1 else torch.cat(shards)

    def bias(self) -> Tensor | None:
        """Return the bias, [outputs] in the layer's dtype, if there is one."""
        return self.concatenated("bias") if self.has_bias else None


class LinearMethod(ABC, Generic[State]):
    """A format of weights. Equal methods may serve neighbouring shards together.

    The state that a method makes from loaded tensors is private: its holder only passes it to
    `apply`.
    """

    __slots__ = ()

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        """Return the specs of a shard's tensors by kind, the last part of a name (`weight` ...). By
        default there is a plain weight."""
        specs = {"weight": TensorSpec(shape=(out_features, in_features), out_axis=0, in_axis=1)}
        return specs | bias_tensors(out_features, has_bias)

    @abstractmethod
    def process(self, part: LinearPart) -> State:
        """Convert the loaded tensors of a part to the state that `apply` uses.

        Raises:
            ModelLoadError: impossible numbers; the message names the tensor.
        """

    @abstractmethod
    def apply(self, state: State, x: Tensor) -> Tensor:
        """Multiply [T, in] → [T, sum of the part's out_features]."""

    def apply_in_fp32(self, state: State, x: Tensor) -> Tensor:
        """Multiply in fp32, as precisely as the method can: logits need more precision than
        bf16."""
        return self.apply(state, x).float()

    @abstractmethod
    def bits_per_weight(self, dtype_bytes: int) -> float:
        """Return the bits per weight in memory, scales included, for activations of
        `dtype_bytes`."""

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        """Return a layer's memory without its bias."""
        return out_features * in_features * self.bits_per_weight(dtype_bytes) / 8

    @property
    def takes_plain_weights(self) -> bool:
        """Whether `arrange` can make the state from a plain weight."""
        return True

    def arrange(self, weight: Tensor, bias: Tensor | None = None) -> State:
        """Make the state from a plain weight [out, in], for example of another layer; a packed
        state is a copy."""
        raise NotImplementedError

    def row_lookup(self, state: State, dtype: torch.dtype) -> RowLookup | None:
        """Return a function that looks up rows of the weight, so that an embedding tied to this
        layer needs no copy; None if the state has other numbers, or its rows are hard to find."""
        return None

    def lends_rows(self, device: str) -> bool:
        """Whether `row_lookup` can look up rows of the checkpoint's packed weights on a device."""
        return False

    def dequantised(self, part: LinearPart) -> Tensor:
        """Compute the plain weight [out, in] from loaded tensors, in new memory; the bias stays in
        `part`."""
        return part.concatenated("weight")

    def module(self, state: State, in_features: int, out_features: int) -> nn.Module:
        """Make a replacement of `torch.nn.Linear`: [..., in] → [..., out]."""
        return MethodModule(self.apply, state, in_features, out_features)


def bias_tensors(out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
    """Return the spec of a layer's bias, if it has one."""
    return (
        {"bias": TensorSpec(shape=(out_features,), out_axis=0, is_added=True)} if has_bias else {}
    )
