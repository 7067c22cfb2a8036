"""A bound of the memory that drawing takes beside a model's weights."""

from engine.files.checkpoint_files import read_optional_json
from engine.weights.source import Checkpoint

_BYTES_PER_PIXEL = 1024
"""A rough bound for a row; it includes the VAE's largest layer."""
_SIDE = 16
"""The pixels of a reference image's token, on a side."""
_WIDTHS_PER_TOKEN = 22
"""The numbers that a layer holds for a token, in widths of the transformer: measured on a CPU, 20.5
in FLUX.1 and 22.6 in FLUX.2."""


def activation_bytes(
    checkpoint: Checkpoint, *, num_pixels: int, num_reference_pixels: int, dtype_bytes: int
) -> int:
    """The memory of one row, whose reference images pass through the transformer beside it.

    Args:
        num_pixels: the pixels of the picture.
        num_reference_pixels: those of all its reference images.
        dtype_bytes: the bytes of an activation.
    """
    picture = _BYTES_PER_PIXEL * num_pixels
    if not num_reference_pixels:
        return picture
    config = read_optional_json(checkpoint.path / "transformer" / "config.json")
    width: int = config.get("num_attention_heads", 0) * config.get("attention_head_dim", 0)
    num_tokens = num_reference_pixels // _SIDE**2
    token_bytes = _WIDTHS_PER_TOKEN * width * dtype_bytes
    return picture + num_tokens * token_bytes
