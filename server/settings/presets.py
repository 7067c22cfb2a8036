"""The operator's presets for chats in the playground, from a file in YAML or JSON. The page exports
its own in the same form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

JsonObject = dict[str, Any] | str
"""An object, or its text."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PresetSampling(_Strict):
    """The samplers that the page has fields for; others go into `extra`."""

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = None


class Preset(_Strict):
    """Settings of a chat.

    Attributes:
        models: those that it is for; empty means all.
        default: whether new chats begin with it.
        answer_schema: the JSON schema of the answer, as the API's `response_format` takes it.
        extra: other fields of the request.
    """

    models: tuple[str, ...] = ()
    default: bool = False
    system: str = ""
    sampling: PresetSampling | None = None
    answer_schema: Annotated[JsonObject, Field(alias="schema")] = ""
    tools: list[dict[str, Any]] | str = ""
    effort: Literal["", "none", "low", "medium", "high"] = ""
    extra: JsonObject = ""
    shows_tokens: Annotated[bool, Field(alias="showsTokens")] = False
    is_raw: Annotated[bool, Field(alias="isRaw")] = False
    shows_grounds: Annotated[bool, Field(alias="showsGrounds")] = False


_Presets = TypeAdapter(dict[Annotated[str, Field(min_length=1, max_length=100)], Preset])


def read_presets(path: Path) -> dict[str, dict[str, Any]]:
    """The presets by their names, with the fields that the file sets.

    Raises:
        ValueError: the file is not of that form; says where.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise ValueError("the file cannot be read as UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ValueError(f"the file is neither YAML nor JSON: {error}") from None
    if not isinstance(data, Mapping):
        raise ValueError("the file must have presets by their names: `Short: {system: Be brief.}`")
    try:
        presets = _Presets.validate_python(data)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"in the file, {place}: {first['msg']}") from None
    return {
        name: one.model_dump(mode="json", by_alias=True, exclude_unset=True)
        for name, one in presets.items()
    }
