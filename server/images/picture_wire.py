"""What goes between the server and a process that reads pictures, as heads of its frames.

server → process   Question, followed by the file
process → server   Decoded, followed by the pixels; Texts; or Refused
"""

from enum import StrEnum

import msgspec

from engine.errors import Failure
from server.images.decoding import MaskMode


class Reading(StrEnum):
    """What a file is read as."""

    IMAGE = "image"
    MASK = "mask"
    GREY = "grey"
    TEXTS = "texts"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What to read, and within which limits; see `server.images.decoding`."""

    reading: Reading
    param: str
    max_pixels: int
    max_side: int
    cpu_s: int
    mask_mode: MaskMode = "auto"
    inverts: bool = False


class Decoded(msgspec.Struct, tag=True, frozen=True):
    """The picture's pixels follow."""

    width: int
    height: int
    channels: int


class Texts(msgspec.Struct, tag=True, frozen=True):
    """What is written in the file beside its pixels."""

    texts: dict[str, str]


class Refused(msgspec.Struct, tag=True, frozen=True):
    """The file cannot be used."""

    failure: Failure


Answer = Decoded | Texts | Refused
