"""The interface of a way to write a layer's change. Called by `files.py`."""

from collections.abc import Mapping, Set
from typing import Protocol

from torch import Tensor

from engine.errors import ModelLoadError, ShapeMismatch
from engine.lora.file_parts import MAX_RANK, Shape
from engine.lora.images.changes import Change, Layer


class Form(Protocol):
    """A way to write a layer's change, named as in PEFT, whose files may use it."""

    peft_type: str
    parts: frozenset[str]
    """All parts that a layer may have, except `alpha`."""
    splits: bool
    """Whether a part of the outputs can be computed without the whole update."""

    def lacks(self, parts: Set[str]) -> str | None:
        """Return the first missing part without which the others are useless, or None."""
        ...

    def rank(self, name: str, shapes: Mapping[str, Shape], layer: Layer) -> int | None:
        """Check that all parts fit each other and the layer; return the rank, or None if there is
        none.

        Raises:
            ShapeMismatch: they do not fit; `name` is the layer's in the file.
        """
        ...

    def num_weights(self, shapes: Mapping[str, Shape], layer: Layer) -> int:
        """The number of weights that the resulting `Change` will keep."""
        ...

    def change(self, tensors: Mapping[str, Tensor], layer: Layer, scale: float) -> Change:
        """Make the change from checked tensors of one dtype. `scale` is alpha over the rank."""
        ...


def check_rank(name: str, rank: int) -> int:
    """Check and return a rank.

    Raises:
        ModelLoadError: the rank is above the limit.
    """
    if not 1 <= rank <= MAX_RANK:
        raise ModelLoadError(f"{name} has rank {rank}; it must be from 1 to {MAX_RANK}")
    return rank


def misfit(name: str, shapes: Mapping[str, Shape], layer: Layer) -> ShapeMismatch:
    """The error for parts that do not fit."""
    found = ", ".join(f"{part} {list(shape)[:6]}" for part, shape in sorted(shapes.items()))
    kernel = "" if layer.kernel is None else f" and a kernel of {'x'.join(map(str, layer.kernel))}"
    return ShapeMismatch(
        f"{name} has {found}; the model's layer has {layer.in_features} inputs, "
        f"{layer.out_features} outputs{kernel}: the adapter was made for another model"
    )


def flattened(shape: Shape) -> Shape:
    """Drop the ends of a 1x1 kernel's shape, since such a convolution only mixes channels."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def mixing(tensor: Tensor) -> Tensor:
    """Drop the ends of a tensor's shape as `flattened` does."""
    return tensor.flatten(1) if tensor.shape[2:] == (1, 1) else tensor
