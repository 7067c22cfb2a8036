"""The messages between the server and a process that decodes pictures, as heads of their frames.

server → process   Question, followed by the file
process → server   Decoded, followed by the pixels; Texts; or Refused
"""

from enum import StrEnum

import msgspec

from engine.contract.picture_facts import Crop, Resampling
from engine.contract.picture_sizes import Size
from engine.errors import Failure
from server.images.decoding import MaskMode


class Reading(StrEnum):
    """How a file is read."""

    IMAGE = "image"
    MASK = "mask"
    GREY = "grey"
    TEXTS = "texts"
    CROPS = "crops"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """The file to read, and the limits; see `server.images.decoding`."""

    reading: Reading
    param: str
    max_pixels: int
    max_side: int
    cpu_s: int
    mask_mode: MaskMode = "auto"
    inverts: bool = False
    crops: tuple[Crop, ...] = ()
    resampling: Resampling = "bilinear"
    upright: Size = (0, 0)
    """The width and height from which the crops were computed."""


class Decoded(msgspec.Struct, tag=True, frozen=True):
    """The file was decoded; its pixels follow. Those of crops are one below the other."""

    width: int
    height: int
    channels: int


class Texts(msgspec.Struct, tag=True, frozen=True):
    """The texts in a file."""

    texts: dict[str, str]


class Refused(msgspec.Struct, tag=True, frozen=True):
    """The file cannot be used."""

    failure: Failure


Answer = Decoded | Texts | Refused
