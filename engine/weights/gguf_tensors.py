"""Reads the directory of tensors in a GGUF file, or in its parts: names, shapes, types and
positions.

It reads the header itself. `gguf.GGUFReader` takes seconds for a large vocabulary and trusts
damaged files. Metadata values are skipped here; `engine.text` reads them.


The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from engine.errors import CorruptFile, ModelLoadError
from engine.files.checkpoint_files import open_regular, unreadable
from engine.files.gguf_part_names import part_names

_VERSIONS = (2, 3)
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_INTEGERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}
_SPLIT = {b"split.no": "number", b"split.count": "count", b"split.tensors.count": "num_tensors"}
"""A part's metadata keys and the fields of `_Split` that they fill."""
_MAX_DIMS = 4
_MAX_DEPTH = 4
_MAX_ENTRIES = 1 << 17
"""The most keys, tensors or nested arrays, so that a damaged count does not cost much time."""


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

    def mapped(self) -> np.ndarray:
        """The bytes as [num_bytes] uint8: the file's own memory, which must not be written to.

        Raises:
            CorruptFile: the file has become shorter since its directory was read.
            ModelLoadError: the file cannot be read any more.
        """
        try:
            with open_regular(self.path) as file:
                return np.memmap(file, np.uint8, "r", self.offset, self.num_bytes)
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
    try:
        with (
            open_regular(path) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _Header(data, path).directory()
    except OSError as error:
        raise unreadable(path, error) from error
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise CorruptFile(
            f"{path.name} is not a whole GGUF file: its header is damaged; fetch it again"
        ) from error


class _Header:
    """A cursor over the mapped file. A `struct.error` means that it has passed the file's end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.name = path.name
        self.position = 0
        self.alignment = 32
        self.split = _Split()

    def directory(self) -> _Directory:
        if self.data[:4] != b"GGUF":
            raise ValueError("magic")
        _, version, num_tensors, num_keys = self._unpack("<IIQQ")
        if version not in _VERSIONS:
            raise ModelLoadError(
                f"{self.name} has GGUF version {version}; versions 2 and 3 in little-endian order "
                f"are supported; convert it again with a current llama.cpp"
            )
        if max(num_tensors, num_keys) > _MAX_ENTRIES:
            raise ValueError("count")
        for _ in range(num_keys):
            self._skip_key()
        entries = [self._entry() for _ in range(num_tensors)]
        start = -(-self.position // self.alignment) * self.alignment
        tensors = {entry[0]: self._tensor(*entry, start) for entry in entries}
        if len(tensors) != num_tensors:
            raise ValueError("duplicate names")
        return _Directory(self.split, tensors)

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string().decode()
        (num_dims,) = self._unpack("<I")
        if not 1 <= num_dims <= _MAX_DIMS:
            raise ValueError("dimensions")
        *dims, type_id, offset = self._unpack(f"<{num_dims}QIQ")
        return name, tuple(reversed(dims)), type_id, offset

    def _tensor(
        self, name: str, shape: tuple[int, ...], type_id: int, offset: int, start: int
    ) -> GGUFTensor:
        try:
            tensor_type = GGMLQuantizationType(type_id)
        except ValueError:
            raise ModelLoadError(
                f"{self.name}: tensor {name[:80]!r} has the unknown type number {type_id}; use a "
                f"file with another quantisation"
            ) from None
        block_size, block_bytes = GGML_QUANT_SIZES[tensor_type]
        if 0 in shape or shape[-1] % block_size:
            raise ValueError("shape")
        num_bytes = math.prod(shape) // block_size * block_bytes
        if start + offset + num_bytes > len(self.data):
            raise CorruptFile(
                f"{self.name} is truncated: tensor {name[:80]!r} ends at byte "
                f"{start + offset + num_bytes}, the file at byte {len(self.data)}; fetch it again"
            )
        return GGUFTensor(name, tensor_type, shape, self.path, start + offset, num_bytes)

    def _skip_key(self) -> None:
        key = self._string()
        (value_type,) = self._unpack("<I")
        if key == b"general.alignment":
            (self.alignment,) = self._unpack("<I")
            if value_type != _UINT32 or self.alignment.bit_count() != 1:
                raise ValueError("alignment")
        elif key in _SPLIT:
            (number,) = self._unpack(f"<{_INTEGERS[value_type]}")
            self.split = replace(self.split, **{_SPLIT[key]: number})
        else:
            self._skip_value(value_type)

    def _skip_value(self, value_type: int, depth: int = 0) -> None:
        if value_type == _STRING:
            self._string()
        elif value_type == _ARRAY:
            self._skip_array(depth)
        else:
            self._advance(_SCALAR_BYTES[value_type])

    def _skip_array(self, depth: int) -> None:
        item_type, count = self._unpack("<IQ")
        if item_type == _STRING:
            self._skip_strings(count)
        elif item_type != _ARRAY:
            self._advance(count * _SCALAR_BYTES[item_type])
        elif depth == _MAX_DEPTH or count > _MAX_ENTRIES:
            raise ValueError("arrays of arrays")
        else:
            for _ in range(count):
                self._skip_value(_ARRAY, depth + 1)

    def _skip_strings(self, count: int) -> None:
        """Skip strings quickly, as a vocabulary has hundreds of thousands."""
        if count * 8 > len(self.data) - self.position:
            raise ValueError("string count")
        read_length = struct.Struct("<Q").unpack_from
        position = self.position
        for _ in range(count):
            position += 8 + read_length(self.data, position)[0]
        self.position = position
        self._advance(0)

    def _string(self) -> bytes:
        (length,) = self._unpack("<Q")
        start = self.position
        self._advance(length)
        return self.data[start : self.position]

    def _unpack(self, layout: str) -> tuple[int, ...]:
        values = struct.unpack_from(layout, self.data, self.position)
        self.position += struct.calcsize(layout)
        return values

    def _advance(self, num_bytes: int) -> None:
        self.position += num_bytes
        if self.position > len(self.data):
            raise ValueError("runs off the end")
