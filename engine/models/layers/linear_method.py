"""How a linear layer keeps its weights and multiplies by them. Quantised formats plug in here."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels import PackedWeight, Panels, linear, linear_packed, native


@dataclass(slots=True, kw_only=True)
class LinearPart:
    """Neighbouring output features of a linear layer that share a method and its type.

    A method puts what it needs under `tensors`; the sizes are this rank's.
    """

    in_features: int
    out_features: tuple[int, ...]
    """Per shard."""
    has_bias: bool
    dtype: torch.dtype
    device: torch.device
    tensors: dict[str, Tensor] = field(default_factory=dict)
    packed: PackedWeight | None = None
    panels: Panels | None = None

    def take(self, shard: int, kind: str, tensor: Tensor) -> None:
        """Keep a loaded tensor of one shard until `process_weights_after_loading`."""
        self.tensors[f"{shard}.{kind}"] = tensor

    def concatenated(self, kind: str) -> Tensor:
        """The shards' loaded tensors as one new tensor in the layer's dtype, which it forgets."""
        shards = self._popped(kind)
        shape = (sum(self.out_features), *shards[0].shape[1:])
        result = torch.empty(shape, dtype=self.dtype, device=self.device)
        for place, shard in zip(torch.split(result, list(self.out_features)), shards, strict=True):
            place.copy_(shard)
        return result

    def concatenated_as_loaded(self, kind: str) -> Tensor:
        """The same in the dtype and on the device that they came in."""
        return torch.cat(self._popped(kind))

    def _popped(self, kind: str) -> list[Tensor]:
        return [self.tensors.pop(f"{shard}.{kind}") for shard in range(len(self.out_features))]


class LinearMethod(ABC):
    """One weight format. Methods that are equal may serve neighbouring shards together."""

    def create_weights(
        self, in_features: int, out_features: int, has_bias: bool
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that the checkpoint has for one shard, by kind (`weight` ...).
        Those of plain weights, unless a format says otherwise."""
        shapes: dict[str, tuple[int, ...]] = {"weight": (out_features, in_features)}
        if has_bias:
            shapes["bias"] = (out_features,)
        return shapes

    @abstractmethod
    def process_weights_after_loading(self, part: LinearPart) -> None:
        """Bring the loaded tensors of a part into the form that `apply` uses."""

    @abstractmethod
    def apply(self, part: LinearPart, x: Tensor) -> Tensor:
        """[T, in] → [T, sum of the part's out_features]."""

    def apply_in_fp32(self, part: LinearPart, x: Tensor) -> Tensor:
        """The same in fp32, as precisely as the method can: logits need more than bf16 gives."""
        return self.apply(part, x).float()

    @property
    def takes_plain_weights(self) -> bool:
        """Whether `arrange` makes what `apply` uses of a plain weight."""
        return True

    def arrange(self, part: LinearPart, weight: Tensor) -> None:
        """Keep a plain weight [out, in], of another layer for example; a packed one is a copy."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class UnquantizedMethod(LinearMethod):
    """Plain weights; on a CPU packed for the native kernel.

    Packed weights replace the plain ones: memory is not doubled. A row's result then has the same
    bits whatever shares the step. Weights that are not packed have that if it is asked for.
    """

    invariant: bool = False

    def process_weights_after_loading(self, part: LinearPart) -> None:
        self.arrange(part, part.concatenated("weight"))
        if part.has_bias:
            bias = part.concatenated("bias")
            part.tensors["bias"] = bias if part.packed is None else bias.float()

    def arrange(self, part: LinearPart, weight: Tensor) -> None:
        if native.runs_on(weight):
            part.packed = PackedWeight.pack(weight)
        else:
            part.tensors["weight"] = weight

    def apply(self, part: LinearPart, x: Tensor) -> Tensor:
        bias = part.tensors.get("bias")
        if part.packed is not None:
            return linear_packed(x, part.packed, bias)
        return linear(x, part.tensors["weight"], bias, invariant=self.invariant)

    def apply_in_fp32(self, part: LinearPart, x: Tensor) -> Tensor:
        """bf16 logits between 16 and 32 are an eighth apart: the best tokens would tie."""
        if part.packed is not None:
            return linear_packed(x, part.packed, part.tensors.get("bias"), fp32_out=True)
        weight, bias = part.tensors["weight"], part.tensors.get("bias")
        if self.invariant or _keeps_sums(x, weight):
            return linear(x, weight, bias, fp32_out=True, invariant=True)
        return linear(x, weight, bias).float()


def _keeps_sums(x: Tensor, weight: Tensor) -> bool:
    """Whether a kernel gives the sums as they are; the reference would convert the weight."""
    kernel = linear.implementations().get("triton")
    return kernel is not None and kernel.supports(x, weight, fp32_out=True, invariant=True)
