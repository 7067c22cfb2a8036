"""The weights of an upscaler's file by their names: `.safetensors`, or what torch saved.

A pickle is read for its tensors only: torch's `weights_only` makes nothing else of it. Before that,
the archive's own list says that it holds no more than the file does.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint_files import check_regular, open_regular
from engine.errors import CorruptFile, ModelLoadError
from engine.weights.safetensors import iter_file_tensors

_MAX_BYTES = 4 << 30
_MAX_PICKLE_BYTES = 16 << 20
"""Of what is in an archive beside tensors."""
_WRAPPERS = ("params_ema", "params", "state_dict", "model")
"""Under these training programs keep the weights, the best ones first."""
_PREFIXES = ("module.", "netG.", "generator.")

StateDict = dict[str, Tensor]


def read_state_dict(path: Path) -> StateDict:
    """
    Raises:
        CorruptFile: it is damaged, holds no weights, or more than a file of its size can.
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
    except Exception as error:  # whatever torch's reader trips over
        raise CorruptFile(
            f"{path.name} cannot be read as weights alone; a file of more than tensors is not "
            f"opened: convert it to safetensors"
        ) from error
    return _weights(saved, path)


def _check_archive(path: Path) -> None:
    """
    Raises:
        CorruptFile: it would take more memory than its size tells, or is cut off.
    """
    with open_regular(path) as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if not is_archive:
        return  # torch's format of before 2020, whose sizes torch compares with the file
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CorruptFile(f"{path.name} is damaged; fetch it again") from error
    for entry in entries:
        is_packed = entry.compress_type != zipfile.ZIP_STORED
        is_pickle = entry.filename.endswith(".pkl")
        if is_packed or (is_pickle and entry.file_size > _MAX_PICKLE_BYTES):
            raise CorruptFile(f"{path.name} is not as torch saves weights; fetch it again")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CorruptFile(f"{path.name} tells of more than it holds; fetch it again")


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
        # A view of few numbers may claim to have many.
        is_whole = tensor.layout is torch.strided and not tensor.is_quantized
        if not is_whole or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise CorruptFile(f"{path.name}: {name[:80]!r} is no plain tensor")
    return found


def _is_wrapped(saved: object, key: str) -> bool:
    return isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping)


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
