"""The folder of a language model to be quantised: its configuration, and groups of its rows."""

from collections.abc import Iterable
from typing import Any

from engine.errors import InvalidParameter, UnsupportedFeature
from engine.files.checkpoint_files import read_json
from engine.models.wrapped_names import unwrapped
from engine.quantization.plan import PICTURE_ENCODER
from engine.quantization.registry import stated_in
from engine.weights.safetensors import folder_headers
from engine.weights.source import Checkpoint

GROUP_SIZES = (128, 64, 32)
"""Group sizes; the first that divides all rows is used."""


def plain_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the folder's config.json.

    Raises:
        UnsupportedFeature: the checkpoint is not a folder, or not plain.
    """
    if checkpoint.layout != "folder":
        fix = (
            "choose a gguf- method, such as gguf-q4_0"
            if checkpoint.layout == "gguf"
            else "give such a folder"
        )
        raise UnsupportedFeature(
            f"{checkpoint.name} must be the folder of a language model, with config.json and "
            f"safetensors; {fix}"
        )
    config = read_json(checkpoint.path / "config.json")
    if stated_in(config):
        raise UnsupportedFeature(
            f"{checkpoint.name} is already quantised; give the model that it was made from"
        )
    return config


def block_matrices(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the shapes [N, K] of the blocks' matrices by tensor name, from the files' headers."""
    return {
        name: header.shape
        for name, header in folder_headers(checkpoint.path).items()
        if is_of_a_block(name) and not is_of_an_encoder(name) and len(header.shape) == 2
    }


def is_of_a_block(name: str) -> bool:
    return ".layers." in f".{name}"


def is_of_an_encoder(name: str) -> bool:
    """Whether a tensor is part of an encoder for pictures, which stays plain."""
    return unwrapped(name).startswith(PICTURE_ENCODER)


def group_size(wanted: int | None, shapes: Iterable[tuple[int, ...]]) -> int:
    """Return the number of weights of a row that share a scale.

    Args:
        wanted: None takes the first of `GROUP_SIZES` that fits.
        shapes: [N, K] of all matrices.

    Raises:
        InvalidParameter: rows cannot be divided into whole groups.
    """
    widths = sorted({shape[1] for shape in shapes})
    if wanted is not None:
        if wanted < 8 or any(width % wanted for width in widths):
            raise InvalidParameter(
                f"group_size is {wanted}; it must be at least 8 and divide the rows, which have "
                f"{', '.join(map(str, widths))} weights",
                param="group_size",
            )
        return wanted
    fitting = (size for size in GROUP_SIZES if not any(width % size for width in widths))
    found = next(fitting, None)
    if found is None:
        raise InvalidParameter(
            f"the rows have {', '.join(map(str, widths))} weights, which cannot be divided into "
            f"groups of 32; give a --group-size that divides them",
            param="group_size",
        )
    return found
