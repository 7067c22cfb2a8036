"""Other names for fields of the image routes: those of Together, fal and diffusers."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from engine.errors import InvalidParameter
from server.protocol.common import ModelRequest, integral

MAX_SIDE = 1 << 16

OTHER_NAMES: Mapping[str, str] = {
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "num_images": "n",
    "num_images_per_prompt": "n",
}
"""Fields that are other names of a field → that field. In addition, `width` and `height` stand for
`size`."""

_OTHERS = (*OTHER_NAMES, "width", "height")


class OtherNames(ModelRequest):
    """The other names. `read_other_names` renames these fields before anything is checked, so they
    stay empty."""

    steps: int | None = Field(None, description="The same as num_inference_steps.")
    cfg_scale: float | None = Field(None, description="The same as guidance_scale.")
    num_images: int | None = Field(None, description="The same as n.")
    num_images_per_prompt: int | None = Field(None, description="The same as n.")
    width: int | None = Field(None, description="With height, the same as size.")
    height: int | None = Field(None, description="With width, the same as size.")


def read_other_names(data: Mapping[str, Any]) -> dict[str, Any]:
    """The body with our names.

    Raises:
        InvalidParameter: a field has different values by two names, or one side is given without
            the other.
    """
    body = {name: value for name, value in data.items() if name not in _OTHERS}
    given = {name: data[name] for name in _OTHERS if data.get(name) is not None}
    for other, name in OTHER_NAMES.items():
        if other in given:
            _set(body, name, given[other], other)
    if "width" in given or "height" in given:
        sides = [_side(given, name) for name in ("width", "height")]
        _set(body, "size", "{}x{}".format(*sides), "width")
    return body


def _set(body: dict[str, Any], name: str, value: Any, other: str) -> None:
    if body.get(name) not in (None, value):
        raise InvalidParameter(
            f"{other} and {name} mean the same and have different values; send one of them",
            param=other,
        )
    body[name] = value


def _side(given: Mapping[str, Any], name: str) -> int:
    value = integral(given.get(name))
    if type(value) is not int or not 1 <= value <= MAX_SIDE:
        raise InvalidParameter(
            f"width and height must be sent together, both integers from 1 to {MAX_SIDE}; or send "
            "size",
            param=name,
        )
    return value
