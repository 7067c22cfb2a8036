"""LoRA adapters in the bodies of the image routes."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from engine.errors import InvalidParameter
from server.http.multipart import Form
from server.protocol.common import WireModel

MAX_LORAS = 8
"""The most adapters of one image."""
MAX_SCALES = 10
MAX_SCALE = 10.0


def _as_list(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else [value]


_Scale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE)]
_Sweep = Annotated[list[_Scale], Field(min_length=1, max_length=MAX_SCALES)]
Scales = Annotated[_Sweep, BeforeValidator(_as_list, json_schema_input_type=_Scale | _Sweep)]
_FORM_FIELD = re.compile(r"loras\[\]\[(name|scale)\]")


class LoraField(WireModel):
    """An adapter to draw with. Misspelt fields are refused, because the scale would silently have
    no effect."""

    name: str = Field(
        min_length=1, max_length=256, description="The adapter's name, as `/v1/models` lists it."
    )
    scale: Scales | None = Field(
        None,
        description="How strong the adapter is: 0 has no effect, 1 is as trained. A list makes "
        "`n` images with each of its scales, from the same seeds. Default 1.",
    )

    @model_validator(mode="after")
    def _check_known(self) -> Self:
        if self.model_extra:
            raise InvalidParameter(
                "an entry of loras has only name and scale; leave out other fields", param="loras"
            )
        return self

    @property
    def scales(self) -> list[float]:
        """A single scale, or those of a sweep."""
        return [1.0] if self.scale is None else self.scale


def num_settings(loras: Sequence[LoraField] | None) -> int:
    """Number of different sets of scales in a request."""
    return max((len(lora.scales) for lora in loras or ()), default=1)


def check_loras(loras: Sequence[LoraField], n: int, max_images: int) -> None:
    """Refuse adapters that cannot be used together.

    Args:
        n: number of images with each setting.

    Raises:
        InvalidParameter: an adapter occurs twice, sweeps have different lengths, or there are too
            many images.
    """
    names = [lora.name for lora in loras]
    if len(set(names)) < len(names):
        raise InvalidParameter(
            "loras names an adapter twice; name it once, with the sum of its scales", param="loras"
        )
    lengths = {len(lora.scales) for lora in loras} - {1}
    if len(lengths) > 1:
        raise InvalidParameter(
            f"loras has lists of {' and '.join(map(str, sorted(lengths)))} scales, but the lists "
            "are used together; give all the same number",
            param="loras",
        )
    num_images = n * num_settings(loras)
    if num_images > max_images:
        raise InvalidParameter(
            f"n times the scales in loras makes {num_images} images; the limit is {max_images}; "
            "lower n, or send fewer scales",
            param="loras",
        )


def read_form_loras(form: Form) -> list[dict[str, Any]] | None:
    """Adapters in the way that the OpenAI client writes a list of objects into a form:
    `loras[][name]` and `loras[][scale]`, one after another. None if there are none.

    Raises:
        InvalidParameter: it is unclear which scale belongs to which adapter, or a scale is not a
            number.
    """
    names = [part.text() for part in form.get("loras[][name]", [])]
    scales = [part.text() for part in form.get("loras[][scale]", [])]
    if not names and not scales:
        return None
    if scales and len(scales) != len(names):
        raise InvalidParameter(
            "loras has scales for only some of the adapters; send loras as one field with JSON",
            param="loras",
        )
    try:
        numbers = [float(text) for text in scales] or [1.0] * len(names)
    except ValueError as error:
        raise InvalidParameter(
            "a scale in loras is not a number; write a number such as 0.8", param="loras"
        ) from error
    return [{"name": name, "scale": scale} for name, scale in zip(names, numbers, strict=True)]


def is_form_lora(name: str) -> bool:
    """Whether `read_form_loras` reads a form's field."""
    return _FORM_FIELD.fullmatch(name) is not None
