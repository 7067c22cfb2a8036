"""What a way to write the change of a layer must offer. Called by `files.py`."""

from collections.abc import Mapping, Set
from typing import Protocol

from torch import Tensor

from engine.errors import ModelLoadError, ShapeMismatch
from engine.lora.images.changes import Change, Layer
from engine.lora.peft_files import MAX_RANK

Shape = tuple[int, ...]


class Form(Protocol):
    """A way to write it; named as in PEFT, in whose files it may come."""

    peft_type: str
    parts: frozenset[str]
    """All that a layer may have, but for `alpha`."""
    splits: bool
    """Whether a part of its outputs can be had without putting the whole update together."""

    def lacks(self, parts: Set[str]) -> str | None:
        """The first part without which these mean nothing; None: they are whole."""
        ...

    def rank(self, name: str, shapes: Mapping[str, Shape], layer: Layer) -> int | None:
        """Check that all parts fit each other and the layer; None: it has no rank.

        Raises:
            ShapeMismatch: they do not; `name` is the layer's in the file.
        """
        ...

    def num_weights(self, shapes: Mapping[str, Shape], layer: Layer) -> int:
        """Numbers that its `Change` will keep."""
        ...

    def change(self, tensors: Mapping[str, Tensor], layer: Layer, scale: float) -> Change:
        """Of checked tensors, all of one type. `scale` is alpha over the rank."""
        ...


def check_rank(name: str, rank: int) -> int:
    """
    Raises:
        ModelLoadError: more than is served.
    """
    if not 1 <= rank <= MAX_RANK:
        raise ModelLoadError(f"{name} has rank {rank}; 1 to {MAX_RANK} it can be")
    return rank


def misfit(name: str, shapes: Mapping[str, Shape], layer: Layer) -> ShapeMismatch:
    """What to say of parts that do not fit."""
    found = ", ".join(f"{part} {list(shape)[:6]}" for part, shape in sorted(shapes.items()))
    kernel = "" if layer.kernel is None else f" and a kernel of {'x'.join(map(str, layer.kernel))}"
    return ShapeMismatch(
        f"{name} has {found}; the model's layer has {layer.in_features} inputs, "
        f"{layer.out_features} outputs{kernel}: it was made for another model"
    )


def flattened(shape: Shape) -> Shape:
    """Without the ends of a kernel of one cell: a convolution by it mixes channels alone."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def mixing(tensor: Tensor) -> Tensor:
    """The same of a tensor."""
    return tensor.flatten(1) if tensor.shape[2:] == (1, 1) else tensor
