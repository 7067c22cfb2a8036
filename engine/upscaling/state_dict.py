"""Reads the weights of an upscaler's file by name: from `.safetensors`, or as torch saves them.

Of a pickle only tensors are read: torch's `weights_only` makes nothing else from it. Before that,
the archive's own list must show that it holds no more bytes than the file.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import CorruptFile, ModelLoadError
from engine.files.checkpoint_files import check_regular, open_regular
from engine.weights.safetensors import iter_file_tensors

_MAX_BYTES = 4 << 30
_MAX_PICKLE_BYTES = 16 << 20
"""The most bytes of a pickle in an archive, without tensors."""
_WRAPPERS = ("params_ema", "params", "state_dict", "model")
"""The names under which training programs keep the weights, the best weights first."""
_PREFIXES = ("module.", "netG.", "generator.")

StateDict = dict[str, Tensor]


def read_state_dict(path: Path) -> StateDict:
    """Read the weights of a file by their names.

    Raises:
        CorruptFile: it is damaged, holds no weights, or claims more than a file of its size can
            hold.
        ModelLoadError: it cannot be read.
    """
    if path.suffix == ".safetensors":
        return {name: tensor.clone() for name, tensor in iter_file_tensors(path)}
    check_regular(path, _MAX_BYTES)
    _check_archive(path)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except ModelLoadError:
        raise
    except Exception as error:  # torch's reader can fail in many ways
        raise CorruptFile(
            f"{path.name} is damaged or holds more than tensors, which could run code; convert it "
            f"to safetensors"
        ) from error
    return _weights(saved, path)


def _check_archive(path: Path) -> None:
    """Check an archive's list of entries.

    Raises:
        CorruptFile: it would take more memory than its size, or is cut off.
    """
    with open_regular(path) as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if not is_archive:
        return  # torch's format before 2020; torch itself compares its sizes with the file
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise CorruptFile(f"{path.name} is damaged; fetch it again") from error
    for entry in entries:
        is_packed = entry.compress_type != zipfile.ZIP_STORED
        is_pickle = entry.filename.endswith(".pkl")
        if is_packed or (is_pickle and entry.file_size > _MAX_PICKLE_BYTES):
            raise CorruptFile(
                f"{path.name} is not a file of weights as torch saves them; fetch it again"
            )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CorruptFile(f"{path.name} claims to hold more bytes than it has; fetch it again")


def _weights(saved: object, path: Path) -> StateDict:
    for _ in range(2):
        inner = next((saved[key] for key in _WRAPPERS if _is_wrapped(saved, key)), None)  # type: ignore[index]
        saved = saved if inner is None else inner
    if not isinstance(saved, Mapping):
        raise CorruptFile(f"{path.name} holds no weights by their names")
    found = {
        _plain(name): tensor
        for name, tensor in saved.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    if not found:
        raise CorruptFile(f"{path.name} holds no weights by their names")
    for name, tensor in found.items():
        # A view of a few numbers may claim to have many.
        is_whole = tensor.layout is torch.strided and not tensor.is_quantized
        if not is_whole or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise CorruptFile(f"{path.name}: {name[:80]!r} is not a plain tensor")
    return found


def _is_wrapped(saved: object, key: str) -> bool:
    return isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping)


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
