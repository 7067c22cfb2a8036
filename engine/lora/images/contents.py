"""The tensors of an adapter's file, grouped by layer, as the file's header lists them."""

import math
import re
from pathlib import Path
from typing import NamedTuple

from engine.errors import CorruptFile, ModelLoadError, ModelNotFound
from engine.lora.file_parts import WEIGHTS, Part, read_parts
from engine.lora.peft_config import shortened
from engine.weights.safetensors import file_headers

DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
MAX_HEADER_BYTES = 16 << 20
"""A LoRA of every layer of SDXL has less than a million."""
MAX_NAME = 512
"""Characters of a tensor's name."""

_ALPHA, _LENGTHS = "alpha", "lengths"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SIDES = {"A": "down", "B": "up"}
_PART = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.lora_(?P<peft>[AB])(?:\.[^.]+)?\.weight"
    r"|(?:\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)(?P<side>down|mid|up)\.weight"
    r"|\.(?P<lengths>dora_scale|lora_magnitude_vector)(?:\.[^.]+)?(?:\.weight)?"
    r"|\.(?P<part>alpha|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)(?:\.default)?)"
)


class Contents(NamedTuple):
    """The tensors of a file for one layer."""

    parts: dict[str, Part]
    alpha: str | None
    lengths: Part | None
    """DoRA's magnitudes."""


def find_file(place: Path) -> Path:
    """Find the file with the weights.

    Raises:
        ModelLoadError: there is none, or several.
    """
    if not place.is_dir():
        if place.suffix.lower() in _PICKLES:
            raise ModelLoadError(f"{_pickled(place.name)}; save the adapter as safetensors")
        if not place.exists():
            raise ModelNotFound(f"there is no file or folder {place.name!r}")
        return place
    for name in (WEIGHTS, DIFFUSERS_WEIGHTS):
        if (place / name).exists():
            return place / name
    files = sorted(place.glob("*.safetensors"))
    if len(files) != 1:
        pickles = [file.name for file in sorted(place.iterdir()) if file.suffix in _PICKLES]
        because = f" ({_pickled(pickles[0])})" if pickles and not files else ""
        raise ModelLoadError(
            f"the folder has {len(files)} .safetensors files{because}; it must have exactly one, "
            f"or a {WEIGHTS}"
        )
    return files[0]


def _pickled(name: str) -> str:
    return f"{shortened(name)} is a pickle, which can run any code when it is read"


def read_contents(file: Path) -> dict[str, Contents]:
    """List all tensors of a file by the layers' names.

    Raises:
        ModelLoadError: a tensor is unknown or of an unsupported type.
        CorruptFile: a tensor is repeated or incomplete.
    """
    found: dict[str, Contents] = {}
    headers = file_headers(file, max_header_bytes=MAX_HEADER_BYTES)
    for name, parts in read_parts(file.name, headers, _split).items():
        alpha, lengths = parts.pop(_ALPHA, None), parts.pop(_LENGTHS, None)
        if alpha is not None and math.prod(alpha.shape) != 1:
            raise CorruptFile(
                f"{shortened(alpha.key)} must be a single number; fetch the adapter again"
            )
        if parts:
            found[name] = Contents(parts, None if alpha is None else alpha.key, lengths)
        elif lengths is not None:
            raise CorruptFile(
                f"{shortened(name)} has DoRA magnitudes without weights; fetch the adapter again"
            )
    return found


def _split(key: str) -> tuple[str, str] | None:
    match = _PART.fullmatch(key) if len(key) <= MAX_NAME else None
    if match is None:
        return None
    part = match["side"] or match["part"] or (match["lengths"] and _LENGTHS)
    return match["module"], part or _SIDES[match["peft"]]
