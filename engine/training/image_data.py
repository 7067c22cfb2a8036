"""Pictures with captions, from a folder.

`NAME.png` (or .jpg, .jpeg, .webp) with its caption in `NAME.txt`, or `metadata.jsonl` with a line
`{"file_name": "NAME.png", "text": "…"}` for each, as `datasets` has it.
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
"""Of a file's picture."""


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture's file and what it shows."""

    path: Path
    caption: str


def find_pictures(folder: Path) -> list[Captioned]:
    """All of a folder, in the order of their names.

    Raises:
        InvalidParameter: there are none, or one has no caption.
    """
    if not folder.is_dir():
        raise InvalidParameter("the data is no folder; give one of pictures with captions")
    metadata = folder / "metadata.jsonl"
    found = list(_listed(folder, metadata) if metadata.exists() else _with_text_files(folder))
    if not found:
        raise InvalidParameter(f"the folder has no picture that ends in {', '.join(ENDINGS)}")
    return found


def read_picture(path: Path, size: int) -> npt.NDArray[np.float32]:
    """The middle square of a picture, scaled: [3, size, size] in -1…1.

    Raises:
        InvalidParameter: it is no picture, or too large.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InvalidParameter(
                    f"{path.name} has {picture.width}x{picture.height} pixels; "
                    f"{MAX_PIXELS} in all is the limit"
                )
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InvalidParameter(f"{path.name} is no picture that can be read: {error}") from None
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
                f"line {number} of metadata.jsonl needs file_name, of a picture in the folder, and "
                f"text"
            )
        yield Captioned(path, caption)
