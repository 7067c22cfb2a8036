"""The fields of a request that set the form of its text, in three dialects.

OpenAI's `response_format`, vLLM's `structured_outputs` (and its older `guided_…`), and llama.cpp's
`grammar` and `json_schema` all become one `engine.contract.structure.Structure`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Self

import msgspec
from pydantic import BaseModel, Field, model_validator

from engine.contract.structure import MAX_CHARS, Structure, StructureKind, Tag, Tags
from engine.errors import InvalidParameter, UnsupportedFeature

MAX_CHOICES = 2048
_Object = Annotated[dict[str, Any], Field(max_length=64)]
_Text = Annotated[str, Field(max_length=MAX_CHARS)]
_ANY_OBJECT = {"type": "object"}


class StructureFields(BaseModel):
    """The form of the text. Only one may be requested, but by an old and a new name at once."""

    response_format: _Object | None = Field(
        None,
        description='OpenAI\'s: `{"type": "json_object"}`, or `{"type": "json_schema", '
        '"json_schema": {"name": …, "schema": …}}`. With or without strict, '
        "the text follows the schema, and a schema that cannot be enforced is "
        "refused. Default: free text.",
        examples=[
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "list", "schema": {"type": "array"}}},
        ],
    )
    structured_outputs: _Object | None = Field(
        None,
        description="vLLM's: one of `json` (a schema), `json_object`, `regex`, `choice`, "
        "`grammar` (GBNF or Lark), `structural_tag`. With `disable_any_whitespace` JSON has no "
        "optional spaces.",
        examples=[{"choice": ["yes", "no"]}, {"regex": "[0-9]{4}"}],
    )
    grammar: str | None = Field(
        None,
        max_length=MAX_CHARS,
        description="llama.cpp's: a grammar in GBNF; its rule `root` describes the text.",
        examples=['root ::= "yes" | "no"'],
    )
    json_schema: _Object | bool | None = Field(
        None,
        description="llama.cpp's: a JSON Schema that the text follows.",
        examples=[{"type": "object"}],
    )

    guided_json: _Object | bool | _Text | None = Field(
        None, description="vLLM's older name for `structured_outputs` with `json`."
    )
    guided_regex: _Text | None = Field(
        None, description="vLLM's older name for `structured_outputs` with `regex`."
    )
    guided_choice: list[_Text] | None = Field(
        None,
        max_length=MAX_CHOICES,
        description="vLLM's older name for `structured_outputs` with `choice`.",
    )
    guided_grammar: _Text | None = Field(
        None, description="vLLM's older name for `structured_outputs` with `grammar`."
    )

    @model_validator(mode="after")
    def _check_structure(self) -> Self:
        _ = self.structure
        return self

    @cached_property
    def structure(self) -> Structure | None:
        """The form that the text must have.

        Raises:
            InvalidParameter, UnsupportedFeature: names the field.
        """
        asked = [
            structure
            for structure in (
                _of_response_format(self.response_format),
                _of_structured_outputs(self.structured_outputs),
                _of_grammar(self.grammar),
                _of_schema(self.json_schema, "json_schema"),
                *(_of_guided(getattr(self, f"guided_{kind}"), kind) for kind in _GUIDED),
            )
            if structure is not None
        ]
        if len(set(asked)) > 1:
            raise InvalidParameter(
                f"{asked[0].param} and {asked[1].param} both set the form of the text; send one "
                "of them",
                param=asked[1].param,
            )
        return asked[0] if asked else None


def _of_response_format(value: Mapping[str, Any] | None) -> Structure | None:
    param = "response_format"
    match value:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            # llama.cpp takes a schema here.
            return _of_schema(value.get("schema", _ANY_OBJECT), param)
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return _of_schema(schema, param)
        case {"type": "json_schema", "schema": schema}:
            return _of_schema(schema, param)
        case {"type": "json_schema"}:
            raise InvalidParameter("json_schema needs a schema", param=f"{param}.json_schema")
        case {"type": "structural_tag"}:
            return _of_tags(value, param)
    raise InvalidParameter(
        "response_format must have type text, json_object, json_schema or structural_tag",
        param=f"{param}.type",
    )


def _of_structured_outputs(value: Mapping[str, Any] | None) -> Structure | None:
    param = "structured_outputs"
    if value is None:
        return None
    asked = {name: one for name, one in value.items() if one is not None}
    is_compact = asked.pop("disable_any_whitespace", False) is True
    for name in asked.keys() - _KINDS.keys():
        if asked.pop(name) is not False:
            raise UnsupportedFeature(
                f"{param} does not support {name}; leave it out", param=f"{param}.{name}"
            )
    if len(asked) > 1:
        raise InvalidParameter(
            f"{param} has {' and '.join(sorted(asked))}; send one of them", param=param
        )
    for name, one in asked.items():
        structure: Structure = _KINDS[name](one, f"{param}.{name}")
        return replace(structure, is_compact=is_compact)
    raise InvalidParameter(f"{param} must have one of {', '.join(_KINDS)}", param=param)


def _of_schema(schema: Any, param: str) -> Structure | None:
    if schema is None:
        return None
    schema = _parsed(schema, param)
    if not isinstance(schema, Mapping | bool):
        raise InvalidParameter("a JSON Schema must be an object or a boolean", param=param)
    _check_amount(schema, param)
    return _bounded(Structure.of_schema(schema, param=param))


def _of_json_object(value: Any, param: str) -> Structure:
    if value is not True:
        raise InvalidParameter("json_object must be true, or left out", param=param)
    return Structure.of_schema(_ANY_OBJECT, param=param)


def _of_regex(value: Any, param: str) -> Structure:
    return _bounded(Structure(StructureKind.REGEX, _string(value, param), param=param))


def _of_grammar(value: Any, param: str = "grammar") -> Structure | None:
    if value is None or value == "":
        return None
    return _bounded(Structure(StructureKind.GRAMMAR, _string(value, param), param=param))


def _of_choice(value: Any, param: str) -> Structure:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CHOICES:
        raise InvalidParameter(
            f"choice must be an array of 1 to {MAX_CHOICES} strings", param=param
        )
    choices = [_string(one, param) for one in value]
    if "" in choices:
        raise InvalidParameter("a choice cannot be empty; leave it out", param=param)
    return _bounded(Structure.of_choice(choices, param=param))


def _of_tags(value: Any, param: str) -> Structure:
    """The structure of tags: vLLM's and SGLang's `structures` and `triggers`, or xgrammar's
    `format`."""
    value = _parsed(value, param)
    match value:
        case {"structures": list(tags), "triggers": list(triggers)}:
            return _tags(tags, triggers, param)
        case {"format": {"type": "triggered_tags", "tags": list(tags), "triggers": list(triggers)}}:
            more = value["format"]
            return _tags(
                tags,
                triggers,
                param,
                at_least_one=more.get("at_least_one") is True,
                at_most_one=more.get("stop_after_first") is True,
            )
    raise InvalidParameter(
        "a structural tag must have structures and triggers, or a format of type triggered_tags "
        "with tags and triggers",
        param=param,
    )


def _tags(
    tags: Sequence[Any],
    triggers: Sequence[Any],
    param: str,
    *,
    at_least_one: bool = False,
    at_most_one: bool = False,
) -> Structure:
    _check_amount((tags, triggers), param)
    read = Tags(
        tags=[_tag(tag, param) for tag in tags],
        triggers=[_string(trigger, param) for trigger in triggers],
        at_least_one=at_least_one,
        at_most_one=at_most_one,
    )
    return _bounded(read.structure(param=param))


def _tag(tag: Any, param: str) -> Tag:
    match tag:
        case {
            "begin": str(begin),
            "end": str(end),
            "content": {"type": "json_schema", "json_schema": dict() | bool() as schema},
        }:
            return Tag(begin, schema, end)
        case {"begin": str(begin), "end": str(end), "schema": dict() | bool() as schema}:
            return Tag(begin, schema, end)
    raise InvalidParameter("a tag must have begin, schema and end", param=param)


_KINDS: Mapping[str, Any] = {
    "json": _of_schema,
    "json_object": _of_json_object,
    "regex": _of_regex,
    "choice": _of_choice,
    "grammar": _of_grammar,
    "structural_tag": _of_tags,
}
"""The entries of `structured_outputs`, and the functions that read them."""


_GUIDED = ("json", "regex", "choice", "grammar")


def _of_guided(value: Any, kind: str) -> Structure | None:
    if value is None:
        return None
    structure: Structure | None = _KINDS[kind](value, f"guided_{kind}")
    return structure


def _parsed(value: Any, param: str) -> Any:
    """The value, which may have come as JSON in a string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise InvalidParameter(f"{param} is not valid JSON", param=param) from None


def _string(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise InvalidParameter(f"{param} must be a string", param=param)
    return value


def num_json_bytes(value: Any) -> int:
    """Number of bytes as JSON; 0 if the value is nested too deeply to be written."""
    try:
        return len(msgspec.json.encode(value))
    except RecursionError:
        return 0


def _check_amount(value: Any, param: str) -> None:
    """Refuse a value whose JSON is too long, ten times as fast as by writing it as text.

    Raises:
        InvalidParameter: it has too many characters, which have at most 4 bytes each.
    """
    least = num_json_bytes(value) // 4
    if least > MAX_CHARS:
        raise InvalidParameter(
            f"{param} has at least {least} characters; the limit is {MAX_CHARS}; send a smaller "
            "one",
            param=param,
        )


def _bounded(structure: Structure) -> Structure:
    structure.check_size()
    return structure
