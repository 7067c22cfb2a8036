"""How A1111 names an image model where it is chosen: `NAME [HASH]`, whose hash is the first digits
of the digest of its files."""

import re

from engine.image_types import ImageModelInfo
from server.images.metadata import short_hash

_TITLE = re.compile(r"(?P<name>.+) \[(?P<hash>[0-9a-f]{10})\]")


def title_of(info: ImageModelInfo) -> str:
    """Without a hash where the engine names none."""
    return f"{info.model} [{short_hash(info.digest)}]" if info.digest else info.model


def read_title(title: str) -> tuple[str, str | None]:
    """The model's name, and the hash if there is one."""
    found = _TITLE.fullmatch(title)
    return (found["name"], found["hash"]) if found else (title, None)
