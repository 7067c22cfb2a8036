"""A GGUF file's metadata as a plain dictionary, without its tensors.

The `gguf` library needs seconds for a vocabulary, because it makes numpy views of every string; the
HTTP process must answer within two. This reader steps over a memory map and trusts no number in it:
every length is checked against the bytes that are left. It is used for tokenizers and model
configurations.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from engine.errors import CorruptFile, ModelLoadError
from engine.files.checkpoint_files import open_regular, unreadable

_VERSIONS = (2, 3)
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_MAX_DEPTH = 4
"""The most levels of nested arrays. The format allows any depth; no known file has more than
one."""

_MAX_ITEMS = 1 << 24
"""The most items of one array: a damaged count must not turn gigabytes of tensors into a list."""


def read_metadata(path: Path) -> dict[str, Any]:
    """All keys of the file: bool, int, float and str values, and lists of them.

    Args:
        path: a GGUF file of version 2 or 3, little-endian; of a split model, its first part.

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
            return _Cursor(data, path.name).metadata()
    except OSError as error:
        raise unreadable(path, error) from error
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise CorruptFile(
            f"{path.name} is not a complete GGUF file: its metadata is damaged; fetch it again"
        ) from error


class _Cursor:
    """A position in the mapped file. `struct.error` means that it ran past the end."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data = data
        self.name = name
        self.position = 0

    def metadata(self) -> dict[str, Any]:
        magic, version, _, num_keys = self._unpack("<4sIQQ")
        if magic != b"GGUF":
            raise ValueError("magic")
        if version not in _VERSIONS:
            raise ModelLoadError(
                f"{self.name} has GGUF version {version}; it must be version 2 or 3 in "
                f"little-endian order; convert it again with a current llama.cpp"
            )
        self._check_room(num_keys, 12)
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._strings(1)[0]
            if key in metadata:
                raise ValueError("a key is repeated")
            (value_type,) = self._unpack("<I")
            metadata[key] = self._values(value_type, 1, 0)[0]
        return metadata

    def _values(self, value_type: int, count: int, depth: int) -> list[Any]:
        if value_type == _STRING:
            return self._strings(count)
        if value_type == _ARRAY:
            return [self._array(depth) for _ in range(count)]
        code = _SCALARS[value_type]
        self._check_room(count, struct.calcsize(f"<{code}"))
        return list(self._unpack(f"<{count}{code}"))

    def _array(self, depth: int) -> list[Any]:
        if depth == _MAX_DEPTH:
            raise ValueError("arrays are nested too deeply")
        item_type, count = self._unpack("<IQ")
        if item_type == _ARRAY:
            self._check_room(count, 12)
        return self._values(item_type, count, depth + 1)

    def _strings(self, count: int) -> list[str]:
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
            strings.append(data[start:position].decode())
        self.position = position
        return strings

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self.data, self.position)
        self.position += struct.calcsize(layout)
        return values

    def _check_room(self, count: int, item_bytes: int) -> None:
        """Check that `count` items of at least `item_bytes` fit, before anything is allocated."""
        if count > _MAX_ITEMS or count * item_bytes > len(self.data) - self.position:
            raise ValueError("a count is larger than the file")
