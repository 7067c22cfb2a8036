"""Finds the LoRA adapters of an image request, in its field and in tags of its prompt."""

import re

from engine.contract.draw import ImageModelInfo, LoraUse
from engine.errors import InvalidParameter, UnknownAdapter, UnsupportedFeature
from server.protocol.images import ImageFields
from server.protocol.loras import MAX_LORAS, MAX_SCALE

_TAG = re.compile(r"<(?:lora|lyco):([^<>:]{1,256})(?::([^<>:]*))?(:[^<>]*)?>", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d{1,9}(?:\.\d{0,20})?|\.\d{1,20})")
_MAX_NAMED = 8
"""The most adapters that a message lists."""


def take_tags(prompt: str) -> tuple[str, dict[str, float]]:
    """The prompt without `<lora:NAME:SCALE>` and `<lyco:...>`, and the scales, 1 by default.

    Raises:
        InvalidParameter: a scale is not a number or too large, or an adapter is named twice.
        UnsupportedFeature: a tag has separate scales for text encoder and denoiser.
    """
    scales: dict[str, float] = {}
    for match in _TAG.finditer(prompt):
        name, text, more = match.groups()
        name = name.strip()
        if more or "=" in (text or ""):
            raise UnsupportedFeature(
                f"<lora:{name}:...> takes a single scale for both text encoder and denoiser; give "
                "one number",
                param="prompt",
            )
        if text and not _NUMBER.fullmatch(text.strip()):
            raise InvalidParameter(
                f"the scale of <lora:{name}:...> is not a number; write a number such as 0.8",
                param="prompt",
            )
        scale = float(text) if text else 1.0
        if abs(scale) > MAX_SCALE:
            raise InvalidParameter(
                f"the scale in <lora:{name}:{scale:g}> is too large; it can be {-MAX_SCALE:g} to "
                f"{MAX_SCALE:g}",
                param="prompt",
            )
        if name in scales:
            raise InvalidParameter(
                f"the prompt has <lora:{name}:...> twice; keep one of them", param="prompt"
            )
        scales[name] = scale
    return _TAG.sub("", prompt).strip() if scales else prompt, scales


def lora_settings(
    body: ImageFields, tags: dict[str, float], info: ImageModelInfo
) -> list[list[LoraUse]]:
    """The adapters of each share of the images; empty if there are none.

    An adapter that was requested as a model has scale 1, unless the request gives another scale.

    Raises:
        InvalidParameter: there are too many adapters, or one is both in the prompt and in `loras`.
        UnknownAdapter: the model has no adapter of that name.
    """
    scales = {name: [scale] for name, scale in tags.items()}
    for lora in body.loras or ():
        if lora.name in scales:
            raise InvalidParameter(
                f"adapter {lora.name!r} is named both in the prompt and in loras; keep one of them",
                param="loras",
            )
        scales[lora.name] = lora.scales
    if info.adapter is not None and info.adapter not in scales:
        scales = {info.adapter: [1.0], **scales}
    if not scales:
        return []
    if len(scales) > MAX_LORAS:
        raise InvalidParameter(
            f"{len(scales)} adapters were requested; an image can have at most {MAX_LORAS}; name "
            "fewer",
            param="loras",
        )
    for name in scales:
        _check_known(name, info, param="prompt" if name in tags else "loras")
    return [
        [
            LoraUse(name=name, scale=own[place if len(own) > 1 else 0])
            for name, own in scales.items()
        ]
        for place in range(body.num_settings)
    ]


def _check_known(name: str, info: ImageModelInfo, *, param: str) -> None:
    if name in info.adapters:
        return
    if name in info.failed_adapters:
        raise UnknownAdapter(
            f"adapter {name!r} of model {info.model!r} is not served: {info.failed_adapters[name]}",
            param=param,
        )
    known = ", ".join(info.adapters[:_MAX_NAMED])
    raise UnknownAdapter(
        f"model {info.model!r} has no adapter {name[:80]!r}; "
        f"{f'it has {known}' if known else 'it has none'}",
        param=param,
    )
