"""Reads the tensors of safetensors files, which are mapped into memory and not copied.

Called by `loader.py`.
"""

import math
import os
import struct
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.errors import CorruptFile, MissingWeight
from engine.files.checkpoint_files import (
    check_regular,
    open_regular,
    parse_json,
    read_json,
    unreadable,
)
from engine.models.config import ModelConfig
from engine.quantization.format import TensorHeader
from engine.quantization.plan import PICTURE_ENCODER

_GUESSES = "mtp."
"""The beginning of names of layers that guess further tokens, which are not used."""
_INDEX = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100 << 20
"""The format's own limit on a header."""
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PIECE_BYTES = 4 << 20
"""The bytes that are read at once: few enough to be still in a cache when they are used."""
_MAX_SMALL_BYTES = 4096
"""The most bytes of a small tensor that describes another one."""


def iter_folder_weights(folder: Path, config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) for what a decoder reads, as `iter_tensors` does."""
    for name, tensor in iter_tensors(folder, leave_out=lambda name: is_redundant(name, config)):
        yield config.tensor_name(name), tensor


def iter_tensors(
    folder: Path, leave_out: Callable[[str], bool] = lambda name: False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) file by file, in the order of the bytes.

    The tensors are views of the mapped file: copy those that must outlive it, and do not write to
    them.

    Args:
        leave_out: says whether the tensor of a name is not wanted.

    Raises:
        CorruptFile: a file is damaged.
        MissingWeight: the index names a file or tensor that does not exist.
    """
    for path, names in _files(folder).items():
        yield from _tensors_of(path, [name for name in names if not leave_out(name)])


def iter_file_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of one file, as `iter_tensors` does."""
    return _tensors_of(path, _in_file_order(read_header(path)))


def _tensors_of(path: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            for name in names:
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise CorruptFile(f"{path.name} is damaged; fetch it again") from error


def read_tensors(path: Path, names: Collection[str]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Yield (name, tensor) for some tensors of a file whose header has been read, in new memory.

    Neighbouring tensors are read together, as many as fit into `_PIECE_BYTES` or one, since there
    may be hundreds of small ones. This is for files that may be changed meanwhile: when a mapped
    file is cut short, a process that reads its missing pages dies.

    Raises:
        CorruptFile: it is damaged, lacks one of them, or one is not of a floating-point type.
        ModelLoadError: it cannot be read.
    """
    header, first = _checked_header(path, _MAX_HEADER_BYTES)
    if not header.keys() >= set(names):
        raise _damaged(path)
    wanted = [name for name in _in_file_order(header) if name in names]
    try:
        with open_regular(path) as file:
            for piece in _pieces({name: header[name] for name in wanted}):
                start, _ = header[piece[0]]["data_offsets"]
                _, end = header[piece[-1]]["data_offsets"]
                data = bytearray(end - start)
                file.seek(first + start)
                if file.readinto(data) < len(data):  # type: ignore[attr-defined]
                    raise _damaged(path)
                yield [(name, _tensor_of(path, header[name], data, start)) for name in piece]
    except OSError as error:
        raise unreadable(path, error) from error


def _pieces(entries: dict[str, Any]) -> Iterator[list[str]]:
    """The names of neighbouring tensors, in the order of the bytes."""
    piece: list[str] = []
    begin = last = 0
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        if piece and (start != last or end - begin > _PIECE_BYTES):
            yield piece
            piece = []
        if not piece:
            begin = start
        piece.append(name)
        last = end
    if piece:
        yield piece


def _tensor_of(path: Path, entry: dict[str, Any], data: bytearray, begin: int) -> torch.Tensor:
    """A tensor out of `data`, which begins at offset `begin` and also holds its neighbours."""
    dtype, shape = _FLOATS.get(entry.get("dtype")), entry["shape"]  # type: ignore[arg-type]
    start, end = entry["data_offsets"]
    if dtype is None or math.prod(shape) * dtype.itemsize != end - start:
        raise _damaged(path)
    if start == end:
        return torch.empty(shape, dtype=dtype)
    count = (end - start) // dtype.itemsize
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start - begin).view(shape)


def folder_headers(folder: Path) -> dict[str, TensorHeader]:
    """The shape and type of every tensor."""
    return {
        name: headers[name]
        for path, names in _files(folder).items()
        for headers in [file_headers(path)]
        for name in names
    }


def file_headers(
    path: Path, *, max_header_bytes: int = _MAX_HEADER_BYTES
) -> dict[str, TensorHeader]:
    """The shape and type of every tensor of one file.

    Raises:
        CorruptFile: it is truncated or damaged, or its header is larger than `max_header_bytes`.
        ModelLoadError: it cannot be read.
    """
    header, first = _checked_header(path, max_header_bytes)
    return {
        name: TensorHeader(
            tuple(entry["shape"]), str(entry.get("dtype")), _small_content(path, first, entry)
        )
        for name, entry in header.items()
    }


def _small_content(path: Path, first: int, entry: dict[str, Any]) -> Callable[[], bytes] | None:
    """A function that reads a tensor's bytes, if they are few."""
    start, end = entry["data_offsets"]
    if end - start > _MAX_SMALL_BYTES:
        return None

    def read() -> bytes:
        try:
            with open_regular(path) as file:
                file.seek(first + start)
                return file.read(end - start)
        except OSError as error:
            raise unreadable(path, error) from error

    return read


def is_redundant(name: str, config: ModelConfig) -> bool:
    """Whether the model does not read a tensor: a tied output layer, old files' rotary tables, an
    encoder for pictures that cannot be used or parts of one that are not needed, or layers that
    guess tokens."""
    if name.startswith(_GUESSES):
        return True
    own = config.tensor_name(name)
    if own == "lm_head.bias":
        return False
    if own.startswith("lm_head."):
        return config.tie_word_embeddings
    if own.startswith(PICTURE_ENCODER):
        return config.vision is None or not config.vision.reads(own)
    return name.endswith("rotary_emb.inv_freq")


def _files(folder: Path) -> dict[Path, list[str]]:
    """The tensors to read from each file."""
    index = folder / _INDEX
    if not index.exists():
        headers = {path: read_header(path) for path in _unindexed(folder)}
        return {path: _in_file_order(header) for path, header in headers.items()}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(_is_plain(v) for v in weight_map.values()):
        raise CorruptFile(f"{_INDEX} has no usable weight_map; fetch it again")
    owned: dict[str, set[str]] = {}
    for name, file_name in weight_map.items():
        owned.setdefault(file_name, set()).add(name)
    return {
        folder / file_name: _owned(folder / file_name, owned[file_name])
        for file_name in sorted(owned)
    }


def _owned(path: Path, names: set[str]) -> list[str]:
    """The tensors that the index assigns to a file, in the order of the bytes."""
    if not os.path.exists(path):  # false, and not an error, for a name that no file can have
        raise MissingWeight(f"{_INDEX} names {path.name}, which is missing; fetch it")
    header = read_header(path)
    if names - header.keys():
        missing = min(names - header.keys())
        raise MissingWeight(f"{path.name} lacks tensor {missing!r}; fetch the model again")
    return [name for name in _in_file_order(header) if name in names]


def _is_plain(file_name: object) -> bool:
    """Whether a name is a plain file name, which cannot lead out of the folder."""
    return isinstance(file_name, str) and file_name == os.path.basename(file_name) != ""


def _unindexed(folder: Path) -> list[Path]:
    whole = folder / "model.safetensors"
    return [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))


def _in_file_order(header: dict[str, Any]) -> list[str]:
    return sorted(header, key=lambda name: header[name]["data_offsets"][0])


def read_header(path: Path, *, max_bytes: int = _MAX_HEADER_BYTES) -> dict[str, Any]:
    """The entries of all tensors, `dtype`, `shape` and `data_offsets`, checked against the file's
    size.

    Raises:
        CorruptFile: it is truncated or damaged.
        ModelLoadError: it cannot be read.
    """
    return _checked_header(path, max_bytes)[0]


def _checked_header(path: Path, max_bytes: int) -> tuple[dict[str, Any], int]:
    """The checked entries, and the number of bytes before the tensors."""
    header, start, size = _read_raw_header(path, max_bytes)
    header.pop("__metadata__", None)
    try:
        ends = [_checked_end(entry) for entry in header.values()]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    if start + max(ends, default=0) != size:
        raise CorruptFile(
            f"{path.name} has {size} bytes and should have {start + max(ends, default=0)}; "
            f"fetch it again"
        )
    return header, start


def read_file_metadata(path: Path, *, max_header_bytes: int = _MAX_HEADER_BYTES) -> dict[str, Any]:
    """What a file says about itself in its header, under free names; often nothing.

    Raises:
        CorruptFile: it is truncated or damaged.
        ModelLoadError: it cannot be read.
    """
    metadata = _read_raw_header(path, max_header_bytes)[0].get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def _read_raw_header(path: Path, max_bytes: int) -> tuple[dict[str, Any], int, int]:
    """The raw header, the number of bytes before the tensors, and the size of the file."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(max_bytes, size - 8):
                raise _damaged(path)
            data = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    except struct.error as error:
        raise _damaged(path) from error
    return parse_json(data, f"the header of {path.name}"), 8 + length, size


def _damaged(path: Path) -> CorruptFile:
    return CorruptFile(f"{path.name} is damaged; fetch it again")


def _checked_end(entry: dict[str, Any]) -> int:
    start, end = entry["data_offsets"]
    shape = entry["shape"]
    if not isinstance(shape, list):
        raise ValueError("not a shape")
    if not all(isinstance(n, int) and n >= 0 for n in (start, end, *shape)):
        raise ValueError("not a size")
    if start > end or (math.prod(shape) == 0) != (start == end):
        raise ValueError("offsets")
    return int(end)
