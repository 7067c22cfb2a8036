"""A1111's titles of image models: `NAME [HASH]`, with the first digits of the digest of the model's
files."""

import re

from engine.contract.draw import ImageModelInfo
from server.images.metadata import short_hash

_TITLE = re.compile(r"(?P<name>.+) \[(?P<hash>[0-9a-f]{10})\]")


def title_of(info: ImageModelInfo) -> str:
    """A model's title; it has no hash if the engine names no digest."""
    return f"{info.model} [{short_hash(info.digest)}]" if info.digest else info.model


def read_title(title: str) -> tuple[str, str | None]:
    """The model's name in a title, and the hash if there is one."""
    found = _TITLE.fullmatch(title)
    return (found["name"], found["hash"]) if found else (title, None)
