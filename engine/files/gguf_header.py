"""The header of a GGUF file: its metadata as a plain dictionary, and the entries of its tensors.

The `gguf` library needs seconds for a vocabulary, because it makes numpy views of every string; the
HTTP process must answer within two. This reader steps over a memory map and trusts no number in it:
every length is checked against the bytes that are left. Tokenizers, model configurations and
weights all read the file through it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import CorruptFile, ModelLoadError
from engine.files.checkpoint_files import open_regular, unreadable

_VERSIONS = (2, 3)
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_UINT32, _STRING, _ARRAY = 4, 8, 9
_LENGTH = struct.Struct("<Q")
_ALIGNMENT = "general.alignment"
_MAX_DIMS = 4
_MAX_DEPTH = 4
"""The most levels of nested arrays. The format allows any depth; no known file has more than
one."""
_MAX_ENTRIES = 1 << 17
"""The most keys, tensors or nested arrays, so that a damaged count does not cost much time."""
_MAX_ITEMS = 1 << 24
"""The most items of one array: a damaged count must not turn gigabytes of tensors into a list."""


class GgufEntry(NamedTuple):
    """A tensor as the header lists it. Its type, its size and its place are not checked yet."""

    name: str
    shape: tuple[int, ...]
    """The shape with rows first, as in torch; GGUF uses the opposite order."""
    type_id: int
    offset: int
    """The distance of the tensor's bytes from `GgufHeader.start`."""


class GgufHeader(NamedTuple):
    """The part of a file before the bytes of its tensors."""

    metadata: dict[str, Any]
    """All keys: bool, int, float and str values, and lists of them."""
    entries: list[GgufEntry]
    start: int
    """The position of the first tensor's bytes."""
    file_bytes: int


def read_gguf_header(path: Path, *, keeps_arrays: bool = True) -> GgufHeader:
    """Read the header of one file.

    Args:
        path: a GGUF file of version 2 or 3, little-endian; of a split model, one of its parts.
        keeps_arrays: False leaves the items out of all arrays, which is faster.

    Raises:
        CorruptFile: truncated, damaged, or not a GGUF file.
        ModelLoadError: the file cannot be read, or has another GGUF version.

    Cost: about a microsecond per string; 0.1 s for a vocabulary of 50 000 tokens.
    """
    try:
        with (
            open_regular(path) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _Cursor(data, path.name, keeps_arrays=keeps_arrays).header()
    except OSError as error:
        raise unreadable(path, error) from error
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise damaged_header(path) from error


def damaged_header(path: Path) -> CorruptFile:
    """The error for a header that contradicts itself or the file."""
    return CorruptFile(
        f"{path.name} is not a complete GGUF file: its header is damaged; fetch it again"
    )


class _Cursor:
    """A position in the mapped file. `struct.error` means that it ran past the end."""

    def __init__(self, data: mmap.mmap, name: str, *, keeps_arrays: bool) -> None:
        self.data = data
        self.name = name
        self.keeps_arrays = keeps_arrays
        self.position = 0

    def header(self) -> GgufHeader:
        if self.data[:4] != b"GGUF":
            raise ValueError("magic")
        _, version, num_tensors, num_keys = self._unpack("<IIQQ")
        if version not in _VERSIONS:
            raise ModelLoadError(
                f"{self.name} has GGUF version {version}; it must be version 2 or 3 in "
                f"little-endian order; convert it again with a current llama.cpp"
            )
        if max(num_tensors, num_keys) > _MAX_ENTRIES:
            raise ValueError("a count is too large")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key, value = self._key()
            if key in metadata:
                raise ValueError("a key is repeated")
            metadata[key] = value
        entries = [self._entry() for _ in range(num_tensors)]
        alignment = metadata.get(_ALIGNMENT, 32)
        start = -(-self.position // alignment) * alignment
        return GgufHeader(metadata, entries, start, len(self.data))

    def _key(self) -> tuple[str, Any]:
        key = self._string()
        (value_type,) = self._unpack("<I")
        value = self._values(value_type, 1, 0)[0]
        if key == _ALIGNMENT and (value_type != _UINT32 or value.bit_count() != 1):
            raise ValueError("alignment")
        return key, value

    def _entry(self) -> GgufEntry:
        name = self._string()
        (num_dims,) = self._unpack("<I")
        if not 1 <= num_dims <= _MAX_DIMS:
            raise ValueError("dimensions")
        *dims, type_id, offset = self._unpack(f"<{num_dims}QIQ")
        return GgufEntry(name, tuple(reversed(dims)), type_id, offset)

    def _values(self, value_type: int, count: int, depth: int) -> list[Any]:
        if value_type == _ARRAY:
            return [self._array(depth) for _ in range(count)]
        keeps = self.keeps_arrays or depth == 0
        if value_type == _STRING:
            return self._strings(count, keeps=keeps)
        code = _SCALARS[value_type]
        num_bytes = struct.calcsize(f"<{code}")
        self._check_room(count, num_bytes)
        if keeps:
            return list(self._unpack(f"<{count}{code}"))
        self.position += count * num_bytes
        return []

    def _array(self, depth: int) -> list[Any]:
        if depth == _MAX_DEPTH:
            raise ValueError("arrays are nested too deeply")
        item_type, count = self._unpack("<IQ")
        if item_type == _ARRAY and count > _MAX_ENTRIES:
            raise ValueError("a count is too large")
        return self._values(item_type, count, depth + 1)

    def _strings(self, count: int, *, keeps: bool = True) -> list[str]:
        """Read strings in a tight loop, since vocabularies and merges have hundreds of
        thousands."""
        self._check_room(count, _LENGTH.size)
        data, position, size = self.data, self.position, len(self.data)
        read_length = _LENGTH.unpack_from
        strings = []
        for _ in range(count):
            start = position + 8
            position = start + read_length(data, position)[0]
            if position > size:
                raise ValueError("a string ends after the file")
            if keeps:
                strings.append(data[start:position].decode())
        self.position = position
        return strings

    def _string(self) -> str:
        return self._strings(1)[0]

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self.data, self.position)
        self.position += struct.calcsize(layout)
        return values

    def _check_room(self, count: int, item_bytes: int) -> None:
        """Check that `count` items of at least `item_bytes` fit, before anything is allocated."""
        if count > _MAX_ITEMS or count * item_bytes > len(self.data) - self.position:
            raise ValueError("a count is larger than the file")
