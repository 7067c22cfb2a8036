"""How a linear layer keeps its weights and multiplies by them. Quantised formats plug in here."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

PACK_ROWS = 32
"""Number of input rows that oneDNN arranges packed weights for. Measured over 1 to 128 rows: 16 and
32 are within 3 % of the best everywhere, a hint of 1 is 30 % slower from 64 rows on."""


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

    def take(self, shard: int, kind: str, tensor: Tensor) -> None:
        """Keep a loaded tensor of one shard until `process_weights_after_loading`."""
        self.tensors[f"{shard}.{kind}"] = tensor

    def concatenated(self, kind: str) -> Tensor:
        """The shards' loaded tensors as one new tensor in the layer's dtype, which it forgets."""
        shards = [self.tensors.pop(f"{shard}.{kind}") for shard in range(len(self.out_features))]
        shape = (sum(self.out_features), *shards[0].shape[1:])
        result = torch.empty(shape, dtype=self.dtype, device=self.device)
        for place, shard in zip(torch.split(result, list(self.out_features)), shards, strict=True):
            place.copy_(shard)
        return result


class LinearMethod(ABC):
    """One weight format. Methods that are equal may serve neighbouring shards together."""

    @abstractmethod
    def create_weights(
        self, in_features: int, out_features: int, has_bias: bool
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that the checkpoint has for one shard, by kind (`weight` ...)."""

    @abstractmethod
    def process_weights_after_loading(self, part: LinearPart) -> None:
        """Bring the loaded tensors of a part into the form that `apply` uses."""

    @abstractmethod
    def apply(self, part: LinearPart, x: Tensor) -> Tensor:
        """[T, in] → [T, sum of the part's out_features]."""

    def apply_in_fp32(self, part: LinearPart, x: Tensor) -> Tensor:
        """The same in fp32, as precisely as the method can: logits need more than bf16 gives."""
        return self.apply(part, x).float()


@dataclass(frozen=True, slots=True)
class UnquantizedMethod(LinearMethod):
    """Plain weights; on a CPU prepacked for oneDNN where it has kernels for the dtype.

    Packed weights replace the plain ones: memory is not doubled.
    """

    def create_weights(
        self, in_features: int, out_features: int, has_bias: bool
    ) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"weight": (out_features, in_features)}
        if has_bias:
            shapes["bias"] = (out_features,)
        return shapes

    def process_weights_after_loading(self, part: LinearPart) -> None:
        part.tensors |= self.arrange(part.concatenated("weight"))
        if part.has_bias:
            part.tensors["bias"] = part.concatenated("bias")

    @staticmethod
    def arrange(weight: Tensor) -> dict[str, Tensor]:
        """The weight as `apply` wants it."""
        if can_pack(weight.dtype, weight.device):
            return {"packed": torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)}
        return {"weight": weight}

    def apply(self, part: LinearPart, x: Tensor) -> Tensor:
        tensors = part.tensors
        packed = tensors.get("packed")
        if packed is None:
            return F.linear(x, tensors["weight"], tensors.get("bias"))
        result: Tensor = _LINEAR(x, packed, tensors.get("bias"), "none", [], "")
        return result

    def apply_in_fp32(self, part: LinearPart, x: Tensor) -> Tensor:
        """oneDNN sums in fp32 but rounds what it returns, and bf16 logits between 16 and 32 are an
        eighth apart: the best tokens tie. A second pass with the first result subtracted before
        the rounding returns what was lost; the sum of both is good to 16 bits.
        """
        packed = part.tensors.get("packed")
        if packed is None or part.has_bias:
            return self.apply(part, x).float()
        negative = _LINEAR(x, packed, None, "none", [], "").neg_()
        lost: Tensor = _LINEAR_ADD(x, negative, packed, None, "add")
        return lost.float().sub_(negative)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN multiplies by packed weights of this dtype here."""
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return False


_LINEAR = torch.ops.mkldnn._linear_pointwise.default
_LINEAR_ADD = torch.ops.mkldnn._linear_pointwise.binary
