"""The interface of a format: which layers of a checkpoint it holds or makes, and with which
method."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import nn

from engine.quantization.method import LinearMethod, LinearPart


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """The facts about a tensor that a file's header states."""

    shape: tuple[int, ...]
    """The shape; for GGUF's blocks in numbers, not in bytes."""
    type: str
    """The type's name in the file, such as `BF16` or `I32`, or `Q4_K` in GGUF files."""
    content: Callable[[], bytes] | None = field(default=None, compare=False, repr=False)
    """Reads a tensor that is as small as a header, such as the shape of a packed weight."""


Headers = Mapping[str, TensorHeader]
"""Headers by checkpoint name, such as `model.layers.0.mlp.up_proj.weight`."""


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """A linear layer that is kept in few bits."""

    method: LinearMethod[Any]
    out_features: int
    in_features: int

    def num_bytes(self, dtype_bytes: int) -> float:
        """Return the layer's memory without a bias, for activations of `dtype_bytes`."""
        return self.method.num_bytes(self.out_features, self.in_features, dtype_bytes)

    def module(self, part: LinearPart) -> nn.Module:
        """Build a replacement of `torch.nn.Linear` from the layer's loaded tensors."""
        state = self.method.process(part)
        return self.method.module(state, self.in_features, self.out_features)

    def owned_kinds(self) -> frozenset[str]:
        """Return the last parts of the names of the layer's tensors, except the bias."""
        return frozenset(self.method.tensors(self.in_features, self.out_features, False))


class LoadFormat(ABC):
    """A format made from plain weights when they are loaded."""

    @abstractmethod
    def method_for(self, out_features: int, in_features: int) -> LinearMethod[Any] | None:
        """Return the method for a weight of this size; None if the weight does not fit and stays
        plain."""

    def output_method_for(self, out_features: int, in_features: int) -> LinearMethod[Any] | None:
        """Return the method for a text model's output layer, in which errors show most."""
        return self.method_for(out_features, in_features)


class StoredFormat(ABC):
    """A format of a checkpoint's files."""

    unpacked_by_reader: ClassVar[bool] = False
    """Whether the file's reader returns plain weights for layers that are not to stay packed."""
    side_file: ClassVar[str | None] = None
    """A file beside config.json that older tools wrote instead of `quantization_config`."""

    @classmethod
    @abstractmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        """Return the format as this checkpoint has it, or None if its weights are in another one.

        Args:
            config: `quantization_config` of config.json, or the side file; empty without.
            headers: headers of linear layers' tensors.

        Raises:
            ModelLoadError: the checkpoint uses an unsupported variant of this format; the message
                names the key.
        """

    @abstractmethod
    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        """Return all layers of the format, by name.

        Args:
            device: the device of the layers, `cpu` or `cuda`; on a CPU some take more memory.

        Raises:
            ModelLoadError: tensors do not fit together; the message names one.
        """

    def is_slower_packed(self, layers: Mapping[str, QuantizedLayer], dtype: torch.dtype) -> bool:
        """Whether this machine multiplies faster with the same weights in `dtype`; may measure."""
        return False
