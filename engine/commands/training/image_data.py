"""Reads pictures with captions from a folder.

A picture is `NAME.png` (or .jpg, .jpeg, .webp) with its caption in `NAME.txt`. Or the folder has a
`metadata.jsonl` with a line `{"file_name": "NAME.png", "text": "…"}` for each, as for `datasets`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from engine.errors import InvalidParameter

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 64_000_000
"""The most pixels of a picture."""


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture's file and its caption."""

    path: Path
    caption: str


def find_pictures(folder: Path) -> list[Captioned]:
    """Find all pictures of a folder, in the order of their names.

    Raises:
        InvalidParameter: there are none, or one has no caption.
    """
    if not folder.is_dir():
        raise InvalidParameter("the data is not a folder; give a folder of pictures with captions")
    metadata = folder / "metadata.jsonl"
    found = list(_listed(folder, metadata) if metadata.exists() else _with_text_files(folder))
    if not found:
        raise InvalidParameter(
            f"the folder has no pictures; their names must end in one of {', '.join(ENDINGS)}"
        )
    return found


def read_picture(path: Path, size: int) -> npt.NDArray[np.float32]:
    """Read the middle square of a picture, scaled, as [3, size, size] in -1…1.

    Raises:
        InvalidParameter: the file is not a picture, or the picture is too large.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InvalidParameter(
                    f"{path.name} has {picture.width}x{picture.height} pixels; the limit is "
                    f"{MAX_PIXELS} in total; make it smaller"
                )
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InvalidParameter(f"{path.name} cannot be read as a picture: {error}") from None
    square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
    return (np.asarray(square, np.float32) / 127.5 - 1.0).transpose(2, 0, 1)


def _with_text_files(folder: Path) -> Iterator[Captioned]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in ENDINGS:
            continue
        text = path.with_suffix(".txt")
        if not text.is_file():
            raise InvalidParameter(f"{path.name} has no caption; write it into {text.name}")
        yield Captioned(path, text.read_text(encoding="utf-8", errors="replace").strip())


def _listed(folder: Path, metadata: Path) -> Iterator[Captioned]:
    for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            path, caption = folder / fields["file_name"], fields["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            path, caption = folder, None
        if not isinstance(caption, str) or not path.is_file():
            raise InvalidParameter(
                f"line {number} of metadata.jsonl needs text and the file_name of a picture in the "
                f"folder"
            )
        yield Captioned(path, caption)
