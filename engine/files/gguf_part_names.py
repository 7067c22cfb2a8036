"""Names of the files of a split GGUF model: `NAME-00002-of-00003.gguf` is the second of three.

llama.cpp's tools write this form, and its loader accepts no other:
https://github.com/ggml-org/llama.cpp/tree/master/tools/gguf-split
"""

import re
from pathlib import PurePath

_PART = re.compile(r"(?P<model>.*[^/])-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def part_names(name: str) -> list[str]:
    """The names of all parts of the model that `name` is a part of; of other files, just `name`.

    Args:
        name: a file's name, with or without folders.
    """
    part = _match(name)
    if part is None:
        return [name]
    count = int(part["count"])
    return [f"{part['model']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def first_part(name: str) -> str:
    """The name of a split model's first part; of other files, just `name`."""
    part = _match(name)
    return name if part is None else f"{part['model']}-00001-of-{part['count']}.gguf"


def model_name(name: str) -> str:
    """A model file's name without folders, ending and part number."""
    part = _match(name)
    return PurePath(name).stem if part is None else PurePath(part["model"]).name


def _match(name: str) -> re.Match[str] | None:
    """The parts of a name; None also if the number is not within its count."""
    part = _PART.fullmatch(name)
    return part if part is not None and 1 <= int(part["number"]) <= int(part["count"]) else None
