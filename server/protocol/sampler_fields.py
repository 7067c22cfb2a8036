"""The fields of a request that shape the distribution of its next token: the engine's table, and
the order in which its samplers act."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, create_model

from engine.contract.sampler_order import OTHER_SAMPLER_NAMES, SAMPLERS, check_order
from engine.contract.sampling_params import (
    MAX_STRING_CHARS,
    MAX_STRINGS,
    SAMPLER_PARAMETERS,
    Patterns,
    SamplerParameter,
)
from server.protocol.whole_numbers import NOT_A_FLAG

OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    other: (name,) for name, one in SAMPLER_PARAMETERS.items() for other in one.other_names
}
"""Fields that are other names of a field → that field."""


_Strings = list[Annotated[str, Field(min_length=1, max_length=MAX_STRING_CHARS)]]


def _checked_order(samplers: list[str]) -> list[str]:
    check_order([OTHER_SAMPLER_NAMES.get(name, name) for name in samplers])
    return samplers


_Sampler = Annotated[
    str, Field(json_schema_extra={"enum": [*SAMPLERS, *OTHER_SAMPLER_NAMES], "maxLength": 16})
]
_Samplers = Annotated[
    list[_Sampler], Field(max_length=len(SAMPLERS)), AfterValidator(_checked_order)
]


def _fields() -> dict[str, Any]:
    fields: dict[str, Any] = {
        "samplers": (
            _Samplers | None,
            Field(
                None,
                description="The samplers to use, in their order, as in llama-server; a sampler "
                "that is not listed is off. penalties and dry come first. Default: "
                f"{json.dumps(list(SAMPLERS))}.",
            ),
        )
    }
    for name, one in SAMPLER_PARAMETERS.items():
        fields[name] = _field(one, _description(one))
        for other in one.other_names:
            fields[other] = _field(one, f"Another name for {name}.")
    return fields


def _field(one: SamplerParameter, description: str) -> tuple[Any, Any]:
    if one.kind == Patterns:
        return _Strings | None, Field(None, max_length=MAX_STRINGS, description=description)
    if one.choices:
        return Annotated[Literal[one.choices], NOT_A_FLAG] | None, Field(
            None, description=description
        )
    bounds: dict[str, Any] = {
        name: one.kind(bound)
        for name, bound in (("ge", one.ge), ("gt", one.gt), ("le", one.le))
        if bound is not None
    }
    return one.kind | None, Field(None, **bounds, description=description)


def _description(one: SamplerParameter) -> str:
    default = json.dumps(one.strings) if one.kind == Patterns else f"{one.neutral:g}"
    model = "the model's, or " if one.in_checkpoints else ""
    return f"{one.text} Default: {model}{default}."


if TYPE_CHECKING:

    class SamplerFields(BaseModel):
        """One nullable field per row of the table, one per other name, and `samplers`."""

        samplers: list[str] | None
        top_k: int | None

else:
    SamplerFields = create_model("SamplerFields", **_fields())
