"""LoRA adapters within the bodies of the image routes."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from engine.errors import InvalidParameter
from server.http.multipart import Form
from server.protocol.common import WireModel

MAX_LORAS = 8
"""Adapters of one image."""
MAX_SCALES = 10
MAX_SCALE = 10.0


def _as_list(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else [value]


_Scale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE)]
_Sweep = Annotated[list[_Scale], Field(min_length=1, max_length=MAX_SCALES)]
Scales = Annotated[_Sweep, BeforeValidator(_as_list, json_schema_input_type=_Scale | _Sweep)]
_FORM_FIELD = re.compile(r"loras\[\]\[(name|scale)\]")


class LoraField(WireModel):
    """One adapter to draw with. A misspelt field would silently draw without its scale."""

    name: str = Field(min_length=1, max_length=256, description="As `/v1/models` lists it.")
    scale: Scales | None = Field(
        None,
        description="How strongly it acts; 0 is not at all, 1 as it was trained. A list draws `n` "
        "images with each of its scales, of the same seeds. Default 1.",
    )

    @model_validator(mode="after")
    def _check_known(self) -> Self:
        if self.model_extra:
            raise InvalidParameter(
                "an entry of loras has a name and a scale and nothing else", param="loras"
            )
        return self

    @property
    def scales(self) -> list[float]:
        """One, or those of a sweep."""
        return [1.0] if self.scale is None else self.scale


def num_settings(loras: Sequence[LoraField] | None) -> int:
    """How many different sets of scales are asked for."""
    return max((len(lora.scales) for lora in loras or ()), default=1)


def check_loras(loras: Sequence[LoraField], n: int, max_images: int) -> None:
    """
    Args:
        n: images with each setting.

    Raises:
        InvalidParameter: an adapter twice, sweeps of different lengths, or too many images.
    """
    names = [lora.name for lora in loras]
    if len(set(names)) < len(names):
        raise InvalidParameter("loras names an adapter twice; add up its scales", param="loras")
    lengths = {len(lora.scales) for lora in loras} - {1}
    if len(lengths) > 1:
        raise InvalidParameter(
            f"loras has lists of {' and '.join(map(str, sorted(lengths)))} scales, which are gone "
            f"through together; give all the same number",
            param="loras",
        )
    num_images = n * num_settings(loras)
    if num_images > max_images:
        raise InvalidParameter(
            f"n times the scales in loras is {num_images} images; the limit is {max_images}",
            param="loras",
        )


def read_form_loras(form: Form) -> list[dict[str, Any]] | None:
    """Adapters as the OpenAI client writes a list of objects into a form: `loras[][name]` and
    `loras[][scale]`, one after the other. None: there are none.

    Raises:
        InvalidParameter: nobody can tell which scale is whose, or one is no number.
    """
    names = [part.text() for part in form.get("loras[][name]", [])]
    scales = [part.text() for part in form.get("loras[][scale]", [])]
    if not names and not scales:
        return None
    if scales and len(scales) != len(names):
        raise InvalidParameter(
            "loras has scales for some adapters only; send loras as one field that holds JSON",
            param="loras",
        )
    try:
        numbers = [float(text) for text in scales] or [1.0] * len(names)
    except ValueError as error:
        raise InvalidParameter("a scale in loras is no number", param="loras") from error
    return [{"name": name, "scale": scale} for name, scale in zip(names, numbers, strict=True)]


def is_form_lora(name: str) -> bool:
    """Whether a form's field is one that `read_form_loras` reads."""
    return _FORM_FIELD.fullmatch(name) is not None
