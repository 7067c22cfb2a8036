"""The same layer of all experts, kept in one form."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.linear_packed import PackedWeight
from kernels.linear_panels.panels import Panels, unpack

Weight = PackedWeight | Panels


@dataclass(frozen=True)
class ExpertWeights:
    """[N, K] of each expert: panels of one format, or plain numbers packed for a CPU.

    Each weight has memory of its own, as it was loaded: kernels find them in a table.
    """

    of: tuple[Weight, ...]

    @classmethod
    def together(cls, weights: Sequence[object]) -> "ExpertWeights | None":
        """None: they are not of one form that there is a product for."""
        found = tuple(weight for weight in weights if isinstance(weight, Weight))
        forms = {_form(weight) for weight in found}
        return cls(found) if len(found) == len(weights) and len(forms) == 1 else None

    @property
    def out_features(self) -> int:
        return self.of[0].out_features

    @property
    def in_features(self) -> int:
        return self.of[0].in_features

    def plain(self, expert: int, dtype: torch.dtype) -> Tensor:
        """[N, K] fp32 of numbers that are rounded to `dtype`."""
        weight = self.of[expert]
        if isinstance(weight, PackedWeight):
            return weight.unpack().float()
        return unpack(weight).dequantised().to(dtype).float()

    @cached_property
    def addresses(self) -> NDArray[np.int64]:
        """[E]: where each expert's numbers are."""
        return np.array([weight.data.data_ptr() for weight in self.of], dtype=np.int64)


def _form(weight: Weight) -> object:
    """Equal for weights that one product takes together."""
    return weight.format if isinstance(weight, Panels) else weight.dtype
