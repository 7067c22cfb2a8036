"""The tensors of an adapter's file, grouped by layer, as the file's header lists them."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import CorruptFile, ModelLoadError, ModelNotFound
from engine.lora.images.form import Shape
from engine.lora.peft_config import shortened
from engine.lora.peft_files import DTYPES, WEIGHTS
from engine.weights.safetensors import file_headers

DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
MAX_HEADER_BYTES = 16 << 20
"""A LoRA of every layer of SDXL has less than a million."""
MAX_NAME = 512
"""Characters of a tensor's name."""

_ALPHA = "alpha"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SIDES = {"A": "down", "B": "up"}
_PART = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.lora_(?P<peft>[AB])(?:\.[^.]+)?\.weight"
    r"|(?:\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)(?P<side>down|mid|up)\.weight"
    r"|\.(?P<lengths>dora_scale|lora_magnitude_vector)(?:\.[^.]+)?(?:\.weight)?"
    r"|\.(?P<part>alpha|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)(?:\.default)?)"
)


@dataclass(slots=True)
class Contents:
    """A file's tensors by module and part."""

    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    shapes: dict[str, dict[str, Shape]] = field(default_factory=dict)
    alphas: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, tuple[str, Shape]] = field(default_factory=dict)
    """DoRA's magnitudes by module: the tensor and its shape."""


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


def read_contents(file: Path) -> Contents:
    """List all tensors of a file.

    Raises:
        ModelLoadError: a tensor is unknown or of an unsupported type.
        CorruptFile: a tensor is repeated or incomplete.
    """
    found = Contents()
    for key, header in file_headers(file, max_header_bytes=MAX_HEADER_BYTES).items():
        match = _PART.fullmatch(key) if len(key) <= MAX_NAME else None
        if match is None:
            raise ModelLoadError(
                f"the adapter has a tensor {shortened(key)}, which is not supported"
            )
        if header.type not in DTYPES:
            raise ModelLoadError(
                f"{shortened(key)} has type {header.type}; it must be one of {', '.join(DTYPES)}"
            )
        name, part = match["module"], _part_of(match)
        if part == _ALPHA:
            if math.prod(header.shape) != 1:
                raise CorruptFile(
                    f"{shortened(key)} must be a single number; fetch the adapter again"
                )
            found.alphas[name] = key
            continue
        if match["lengths"]:
            if name in found.lengths:
                raise CorruptFile(f"{file.name} has {shortened(key)} twice; fetch it again")
            found.lengths[name] = (key, header.shape)
            continue
        parts = found.parts.setdefault(name, {})
        if part in parts:
            raise CorruptFile(f"{file.name} has {part} of {shortened(name)} twice; fetch it again")
        parts[part] = key
        found.shapes.setdefault(name, {})[part] = header.shape
    if alone := found.lengths.keys() - found.parts.keys():
        raise CorruptFile(
            f"{shortened(min(alone))} has DoRA magnitudes without weights; fetch the adapter again"
        )
    return found


def _part_of(match: re.Match[str]) -> str:
    return match["side"] or match["part"] or match["lengths"] or _SIDES[match["peft"]]
