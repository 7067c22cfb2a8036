"""Reads the directory of tensors in a GGUF file, or in its parts: names, shapes, types and
positions.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from engine.errors import CorruptFile, ModelLoadError
from engine.files.checkpoint_files import open_regular, unreadable
from engine.files.gguf_header import GgufEntry, GgufHeader, damaged_header, read_gguf_header
from engine.files.gguf_part_names import part_names

_SPLIT = {"split.no": "number", "split.count": "count", "split.tensors.count": "num_tensors"}
"""A part's metadata keys and the fields of `_Split` that they fill."""

_NEWER_TYPES = {42: "type Q2_0, which the installed gguf package cannot read"}
"""What is said of types that are newer than the gguf package, by their numbers."""


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One entry of the directory; its bytes lie within the file, which was checked."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    """The shape with rows first, as in torch; GGUF uses the opposite order."""
    path: Path
    """The file that holds it."""
    offset: int
    """The position of its first byte in the file."""
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    def parts(self) -> "list[GGUFTensor]":
        """One tensor for each index of the first axis; blocks lie along the last one."""
        count = self.shape[0] if len(self.shape) > 1 else 0
        size = self.num_bytes // max(1, count)
        return [
            replace(self, shape=self.shape[1:], offset=self.offset + at * size, num_bytes=size)
            for at in range(count)
        ]

    def halves(self) -> "tuple[GGUFTensor, GGUFTensor]":
        """The first and the second half of the rows."""
        shape, size = (self.shape[0] // 2, *self.shape[1:]), self.num_bytes // 2
        first = replace(self, shape=shape, num_bytes=size)
        return first, replace(first, offset=self.offset + size)

    def mapped(self) -> np.ndarray:
        """The bytes as [num_bytes] uint8: the file's own memory. What is written to it does not
        reach the file.

        Raises:
            CorruptFile: the file has become shorter since its directory was read.
            ModelLoadError: the file cannot be read any more.
        """
        try:
            with open_regular(self.path) as file:
                return np.memmap(file, np.uint8, "c", self.offset, self.num_bytes)
        except OSError as error:
            raise unreadable(self.path, error) from error
        except ValueError as error:
            raise CorruptFile(
                f"{self.path.name} became shorter while it was read; fetch it again"
            ) from error


@dataclass(frozen=True, slots=True)
class _Split:
    """What a file says about the split model that it is a part of."""

    number: int = 0
    """The number of the part, from 0."""
    count: int = 1
    num_tensors: int | None = None
    """The number of tensors of all parts."""

    def __str__(self) -> str:
        return (
            f"part {self.number + 1} of {self.count} with {self.num_tensors} tensors in all parts"
        )


@dataclass(frozen=True, slots=True)
class _Directory:
    """The directory of one file."""

    split: _Split
    tensors: dict[str, GGUFTensor]


def read_tensors(path: Path) -> dict[str, GGUFTensor]:
    """Read the directory of a model.

    Args:
        path: the whole file, or the first part of a split model, with the other parts beside it.

    Raises:
        CorruptFile: a file is truncated, damaged or not GGUF, or the parts belong to different
            models.
        ModelLoadError: a tensor type is unknown, or a part is not the first or has another name
            than parts have.
    """
    first = _read_directory(path)
    split, names = first.split, part_names(path.name)
    if split.count <= 1:
        return first.tensors
    if split.number != 0 or names[0] != path.name or len(names) != split.count:
        raise ModelLoadError(
            f"{path.name} says that it is {split}; give the first part, NAME-00001-of-"
            f"{split.count:05}.gguf, and keep the others beside it under their original names, or "
            f"join all parts with `llama-gguf-split --merge`"
        )
    tensors: dict[str, GGUFTensor] = {}
    for number, name in enumerate(names):
        part = _read_directory(path.with_name(name)) if number else first
        if part.split != replace(split, number=number):
            raise _not_of_one_model(
                f"{name} says that it is {part.split}; {path.name} says {split}"
            )
        if tensors.keys() & part.tensors.keys():
            twice = min(tensors.keys() & part.tensors.keys())
            raise _not_of_one_model(f"{name} repeats tensor {twice[:80]!r} of another part")
        tensors |= part.tensors
    if len(tensors) != split.num_tensors:
        raise _not_of_one_model(f"{path.name} says that it is {split}; there are {len(tensors)}")
    return tensors


def _not_of_one_model(what: str) -> CorruptFile:
    return CorruptFile(f"{what}; the parts are not those of one model: fetch all of them again")


def _read_directory(path: Path) -> _Directory:
    header = read_gguf_header(path, keeps_arrays=False)
    stated = {_SPLIT[key]: number for key, number in header.metadata.items() if key in _SPLIT}
    tensors = {entry.name: _tensor(entry, header, path) for entry in header.entries}
    is_whole = len(tensors) == len(header.entries)
    if not is_whole or any(type(number) is not int for number in stated.values()):
        raise damaged_header(path)
    return _Directory(_Split(**stated), tensors)


def _tensor(entry: GgufEntry, header: GgufHeader, path: Path) -> GGUFTensor:
    try:
        tensor_type = GGMLQuantizationType(entry.type_id)
    except ValueError:
        kind = _NEWER_TYPES.get(entry.type_id, f"the unknown type number {entry.type_id}")
        raise ModelLoadError(
            f"{path.name}: tensor {entry.name[:80]!r} has {kind}; use a file with another "
            f"quantisation, or make one with llama-quantize"
        ) from None
    block_size, block_bytes = GGML_QUANT_SIZES[tensor_type]
    if 0 in entry.shape or entry.shape[-1] % block_size:
        raise damaged_header(path)
    num_bytes = math.prod(entry.shape) // block_size * block_bytes
    first = header.start + entry.offset
    if first + num_bytes > header.file_bytes:
        raise CorruptFile(
            f"{path.name} is truncated: tensor {entry.name[:80]!r} ends at byte "
            f"{first + num_bytes}, the file at byte {header.file_bytes}; fetch it again"
        )
    return GGUFTensor(entry.name, tensor_type, entry.shape, path, first, num_bytes)
