"""The same layer of all experts, kept in one form."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import _triton
from kernels.linear_gguf.dequantize import dequantize
from kernels.linear_gguf.fields import fields_together
from kernels.linear_gguf.quant_type import BLOCKS, GGUFType
from kernels.linear_packed import PackedWeight
from kernels.linear_panels.panels import Panels, unpack


@dataclass(frozen=True, slots=True)
class GgufRows:
    """Rows [N, bytes of a row] uint8 with fields apart (`kernels.linear_gguf`), for a GPU."""

    data: Tensor
    quant_type: GGUFType

    @property
    def out_features(self) -> int:
        return self.data.shape[0]

    @property
    def in_features(self) -> int:
        block = BLOCKS[self.quant_type]
        return self.data.shape[1] // block.num_bytes * block.num_weights


Weight = PackedWeight | Panels | GgufRows | Tensor


@dataclass(frozen=True)
class ExpertWeights:
    """Weights [N, K] of each expert: on a CPU packed or in panels, on a GPU plain or GGUF's blocks.

    Each weight keeps the memory it was loaded into; kernels find the weights by a table.
    """

    of: tuple[Weight, ...]

    @classmethod
    def together(cls, weights: Sequence[object]) -> "ExpertWeights | None":
        """Combine weights; None if they do not share a form that has a product."""
        found = tuple(
            weight for weight in weights if isinstance(weight, Weight) and _is_taken(weight)
        )
        forms = {_form(weight) for weight in found}
        return cls(found) if len(found) == len(weights) and len(forms) == 1 else None

    @property
    def out_features(self) -> int:
        first = self.of[0]
        return first.shape[0] if isinstance(first, Tensor) else first.out_features

    @property
    def in_features(self) -> int:
        first = self.of[0]
        return first.shape[1] if isinstance(first, Tensor) else first.in_features

    def plain(self, expert: int, dtype: torch.dtype) -> Tensor:
        """Return [N, K] fp32, with numbers rounded to `dtype`."""
        weight = self.of[expert]
        if isinstance(weight, Tensor):
            return weight.float()
        if isinstance(weight, PackedWeight):
            return weight.unpack().float()
        if isinstance(weight, Panels):
            return unpack(weight).dequantised().to(dtype).float()
        rows = fields_together(weight.data, weight.quant_type)
        return dequantize(rows, weight.quant_type).to(dtype).float()

    @cached_property
    def addresses(self) -> NDArray[np.int64]:
        """[E], the address of each expert's numbers."""
        data = [weight if isinstance(weight, Tensor) else weight.data for weight in self.of]
        return np.array([one.data_ptr() for one in data], dtype=np.int64)

    @cached_property
    def table(self) -> Tensor:
        """The addresses on the weights' device."""
        first = self.of[0]
        device = (first if isinstance(first, Tensor) else first.data).device
        return torch.tensor(self.addresses.tolist(), dtype=torch.int64, device=device)


def _is_taken(weight: Weight) -> bool:
    """Whether a product takes the weight; plain tensors and blocks need Triton's kernel."""
    if isinstance(weight, PackedWeight | Panels):
        return True
    data = weight if isinstance(weight, Tensor) else weight.data
    return _triton.AVAILABLE and _triton.runs_on(data)


def _form(weight: Weight) -> object:
    """Return a value that is equal for weights that one product takes together."""
    if isinstance(weight, Panels):
        return weight.format
    if isinstance(weight, GgufRows):
        return weight.quant_type
    return type(weight), weight.dtype
