"""How a picture was made, written into its file: A1111's text for people's tools, JSON to replay.

The JSON is the metadata as it is given, by the names of the HTTP API, so that it can be sent again.
"""

import json
from collections.abc import Mapping
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from server.images.sampler_names import names_of

PARAMETERS_CHUNK = "parameters"
JSON_CHUNK = "tandem"

_IMAGE_DESCRIPTION = 0x010E
_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_MAX_EXIF_BYTES = 65_500
"""A JPEG segment holds 65,533 bytes."""

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
    lines.append(", ".join(f"{k}: {_quoted(v)}" for k, v in settings.items() if v is not None))
    # A text chunk ends at the first NUL; half a surrogate pair has no UTF-8.
    text = "\n".join(lines).replace("\0", "")
    return text.encode("utf-8", "replace").decode("utf-8")


def png_chunks(metadata: Mapping[str, Any]) -> PngInfo:
    """Text chunks `parameters` and `tandem`."""
    chunks = PngInfo()
    chunks.add_text(PARAMETERS_CHUNK, parameters_text(metadata))
    chunks.add_text(JSON_CHUNK, json.dumps(metadata))
    return chunks


def exif_bytes(metadata: Mapping[str, Any]) -> bytes | None:
    """EXIF with the text as UserComment and the JSON as ImageDescription; None if it is too long
    for a JPEG file."""
    exif = Image.Exif()
    exif[_IMAGE_DESCRIPTION] = json.dumps(metadata)
    comment = b"UNICODE\0" + parameters_text(metadata).encode("utf-16-be")
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = comment
    data = exif.tobytes()
    return data if len(data) <= _MAX_EXIF_BYTES else None


def _sampler(name: str | None) -> dict[str, str]:
    if name is None:
        return {}
    sampler, schedule_type = names_of(name)
    return {"Sampler": sampler} | ({"Schedule type": schedule_type} if schedule_type else {})


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text
