"""Writes into a picture's file how it was made: A1111's text for people's tools, and JSON to
replay.

The JSON holds the metadata as given, by the names of the HTTP API, so that it can be sent again.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from engine.contract.draw import Enlarging, num_steps_at
from server.images.exif import write_comment
from server.images.hires import LABELS
from server.images.limits import parse_size
from server.images.sampler_names import names_of

PARAMETERS_CHUNK = "parameters"
JSON_CHUNK = "tandem"

_IMAGE_DESCRIPTION = 0x010E
_MAX_EXIF_BYTES = 65_500
"""The most bytes of EXIF data; a JPEG segment holds 65,533 bytes."""

_LEAST_SETTINGS, _MOST_SETTINGS = 3, 200
"""The fewest and the most settings in a last line that counts as settings, as in A1111."""
_NAME = re.compile(r"\s*(\w[\w /-]{1,63}):\s*")
_VALUE = re.compile(r'("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_NEGATIVE = "Negative prompt:"
MODEL_HASH, LORA_HASHES = "Model hash", "Lora hashes"
_HASH_DIGITS = 10
_HASH = re.compile(r"[0-9a-fA-F]{8,64}")

_SETTINGS = (
    ("guidance_scale", "CFG scale"),
    ("image_guidance_scale", "Image CFG scale"),
    ("seed", "Seed"),
    ("size", "Size"),
    ("model", "Model"),
    ("strength", "Denoising strength"),
    ("clip_skip", "Clip skip"),
    ("guidance_rescale", "CFG rescale"),
)


def parameters_text(metadata: Mapping[str, Any]) -> str:
    """A1111's `parameters`: the prompt, the negative prompt, and one line of settings."""
    prompt = str(metadata.get("prompt", ""))
    tags = [f"<lora:{lora['name']}:{lora['scale']:g}>" for lora in metadata.get("loras", [])]
    lines = [" ".join([prompt, *tags])]
    if negative := metadata.get("negative_prompt"):
        lines.append(f"Negative prompt: {negative}")
    settings = {"Steps": metadata.get("num_inference_steps")}
    settings |= _sampler(metadata.get("scheduler"))
    settings |= {label: metadata.get(name) for name, label in _SETTINGS}
    settings |= _hashes(metadata.get("made_with", {}))
    if hires := metadata.get("hires"):
        settings |= {"Denoising strength": hires["strength"], **hires_settings(metadata)}
    lines.append(", ".join(f"{k}: {_quoted(v)}" for k, v in settings.items() if v is not None))
    # A text chunk ends at the first NUL, and half a surrogate pair cannot be written in UTF-8.
    text = "\n".join(lines).replace("\0", "")
    return text.encode("utf-8", "replace").decode("utf-8")


def hires_settings(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A1111's settings of a second pass, as far as they differ from the first."""
    hires = metadata["hires"]
    first, second = parse_size(metadata.get("size")), parse_size(hires["size"])
    assert first is not None and second is not None
    scale = second[0] / first[0]
    is_scaled = scale == second[1] / first[1]
    sampler = _sampler(hires.get("scheduler"))
    differs = hires.get("scheduler") not in (None, metadata.get("scheduler"))
    guidance = hires["guidance_scale"]
    settings = {
        "Hires upscale": f"{scale:g}" if is_scaled else None,
        "Hires resize": None if is_scaled else hires["size"],
        "Hires steps": num_steps_at(hires["num_inference_steps"], hires["strength"]),
        "Hires upscaler": LABELS[Enlarging(hires["upscaler"])],
        "Hires sampler": sampler.get("Sampler") if differs else None,
        "Hires schedule type": sampler.get("Schedule type") if differs else None,
        "Hires CFG Scale": None if guidance == metadata.get("guidance_scale") else guidance,
        "Hires prompt": hires.get("prompt"),
        "Hires negative prompt": hires.get("negative_prompt"),
    }
    return {name: value for name, value in settings.items() if value is not None}


def read_parameters(text: str) -> dict[str, str]:
    """The contents of a text that `parameters_text`, or A1111, has written: settings by A1111's
    names, sizes in two parts, with `Prompt` and `Negative prompt`. Any other text is all prompt."""
    *lines, last = text.strip().split("\n")
    settings = _read_settings(last)
    if len(settings) < _LEAST_SETTINGS:
        lines, settings = [*lines, last], {}
    prompt, _, negative = "\n".join(["", *lines]).partition(f"\n{_NEGATIVE}")
    found = {"Prompt": prompt.strip(), "Negative prompt": negative.strip()}
    for name, value in settings.items():
        size = re.fullmatch(r"(\d+)x(\d+)", value, re.ASCII)
        parts = {f"{name}-{n}": side for n, side in enumerate(size.groups(), 1)} if size else None
        found |= parts or {name: value}
    return found


def png_chunks(metadata: Mapping[str, Any]) -> PngInfo:
    """The text chunks `parameters` and `tandem`."""
    chunks = PngInfo()
    chunks.add_text(PARAMETERS_CHUNK, parameters_text(metadata))
    chunks.add_text(JSON_CHUNK, json.dumps(metadata))
    return chunks


def exif_bytes(metadata: Mapping[str, Any]) -> bytes | None:
    """EXIF data with the text as UserComment and the JSON as ImageDescription; None if they are too
    long for a JPEG file."""
    exif = Image.Exif()
    exif[_IMAGE_DESCRIPTION] = json.dumps(metadata)
    write_comment(exif, parameters_text(metadata))
    data = exif.tobytes()
    return data if len(data) <= _MAX_EXIF_BYTES else None


def _read_settings(line: str) -> dict[str, str]:
    """The settings in a line; empty if it is not a line of settings."""
    found: dict[str, str] = {}
    at = 0
    while at < len(line):
        name = _NAME.match(line, at)
        value = _VALUE.match(line, name.end()) if name else None
        if name is None or value is None or len(found) == _MOST_SETTINGS:
            return {}
        found[name[1]] = _unquoted(value[1].strip())
        at = value.end()
    return found


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _sampler(name: str | None) -> dict[str, str]:
    if name is None:
        return {}
    sampler, schedule_type = names_of(name)
    return {"Sampler": sampler} | ({"Schedule type": schedule_type} if schedule_type else {})


def _hashes(made_with: Mapping[str, Any]) -> dict[str, str]:
    """A1111's settings that name files by the first digits of their digests."""
    found = {}
    if model := made_with.get("model"):
        found[MODEL_HASH] = short_hash(model)
    own = {name: short_hash(one) for name, one in made_with.get("adapters", {}).items()}
    if own:
        found[LORA_HASHES] = ", ".join(f"{name}: {digest}" for name, digest in own.items())
    return found


def short_hash(digest: str) -> str:
    """The digits of a digest that A1111 shows."""
    return digest[:_HASH_DIGITS]


def read_hashes(settings: Mapping[str, str]) -> dict[str, Any]:
    """The `made_with` that the settings of `read_parameters` contain."""
    model = settings.get(MODEL_HASH, "")
    pairs = (pair.rpartition(":") for pair in settings.get(LORA_HASHES, "").split(","))
    named = ((name.strip(), digest.strip()) for name, _, digest in pairs)
    own = {name: digest for name, digest in named if name and _HASH.fullmatch(digest)}
    return {"model": model if _HASH.fullmatch(model) else None, "adapters": own}


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text
