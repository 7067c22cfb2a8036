"""What a format is: which layers of a checkpoint it holds, or makes, and with which method."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import nn

from engine.quantization.method import LinearMethod, LinearPart


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a file says of a tensor before it is read."""

    shape: tuple[int, ...]
    """As it comes; of GGUF's blocks in numbers, not in bytes."""
    type: str
    """As the file names it: `BF16`, `I32`; of GGUF `Q4_K`."""
    content: Callable[[], bytes] | None = field(default=None, compare=False, repr=False)
    """Reads a tensor that is as small as a header, such as the shape of one that is packed."""


Headers = Mapping[str, TensorHeader]
"""Checkpoint name, such as `model.layers.0.mlp.up_proj.weight` → header."""


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """A linear layer that is kept in few bits."""

    method: LinearMethod[Any]
    out_features: int
    in_features: int

    def num_bytes(self, dtype_bytes: int) -> float:
        """In memory, without a bias, where activations have numbers of `dtype_bytes`."""
        return self.method.num_bytes(self.out_features, self.in_features, dtype_bytes)

    def module(self, part: LinearPart) -> nn.Module:
        """In the place of a `torch.nn.Linear`, of its loaded tensors."""
        state = self.method.process(part)
        return self.method.module(state, self.in_features, self.out_features)

    def owned_kinds(self) -> frozenset[str]:
        """Last parts of the names of its tensors, the bias apart."""
        return frozenset(self.method.tensors(self.in_features, self.out_features, False))


class LoadFormat(ABC):
    """Made of plain weights when they are loaded."""

    @abstractmethod
    def method_for(self, out_features: int, in_features: int) -> LinearMethod[Any] | None:
        """For a weight of this size; None: it does not fit and stays plain."""

    def output_method_for(self, out_features: int, in_features: int) -> LinearMethod[Any] | None:
        """The same for a text model's output layer, in which errors show most."""
        return self.method_for(out_features, in_features)


class StoredFormat(ABC):
    """In a checkpoint's files."""

    unpacked_by_reader: ClassVar[bool] = False
    """Whether the file's reader gives plain weights of layers that are not to stay packed."""
    side_file: ClassVar[str | None] = None
    """A file beside config.json that older tools wrote in place of its `quantization_config`."""

    @classmethod
    @abstractmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        """The format as this checkpoint has it; None: its weights are in another one.

        Args:
            config: `quantization_config` of config.json, or the side file; empty without.
            headers: of linear layers' tensors.

        Raises:
            ModelLoadError: it is this format in a way that is not supported; names the key.
        """

    @abstractmethod
    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        """Of all layers that it has, by name.

        Args:
            device: that is to keep them, `cpu` or `cuda`: on a CPU some take more memory.

        Raises:
            ModelLoadError: their tensors do not go together; names one.
        """

    def is_slower_packed(self, layers: Mapping[str, QuantizedLayer], dtype: torch.dtype) -> bool:
        """Whether this machine multiplies faster with the same weights in `dtype`; may measure."""
        return False
