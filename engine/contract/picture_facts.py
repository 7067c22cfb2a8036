"""How a text model sees pictures: how many rows a picture takes, and which crops the encoder gets.

Pure arithmetic on sizes, so that the server knows a picture's tokens before it decodes the file.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Crop(NamedTuple):
    """A part of a picture that the encoder reads at once."""

    resized: tuple[int, int]
    """Width and height to which the whole picture is resized before the box is cut out."""
    box: tuple[int, int, int, int]
    """Left, top, right and bottom in the resized picture: S x S pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFacts:
    """What the server must know of a model that takes pictures in its prompts."""

    side: int
    """S, the width and height of each crop."""
    rows_per_crop: int
    """The number of prompt rows that a crop takes."""
    marker: str
    """The text by which the model's chat template marks the place of a picture."""
    placeholder_id: int
    """The token that stands in the prompt for each row of a crop."""

    def pieces(self, width: int, height: int) -> "list[str | Crop]":
        """What replaces the marker of a picture of this size: text and crops, in order."""
        raise NotImplementedError
