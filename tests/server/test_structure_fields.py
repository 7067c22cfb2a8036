"""What the text must look like, in three dialects, becomes one structure or a 400."""

import json
from typing import Any

import pytest

from engine.contract.structure import MAX_CHARS, Structure, StructureKind
from engine.errors import EngineError, InvalidParameter
from server.protocol.completions import CompletionRequest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TAG = {"begin": "<f>", "schema": SCHEMA, "end": "</f>"}


def structure_of(**fields: Any) -> Structure | None:
    return CompletionRequest.model_validate({"prompt": "x", **fields}).structure


def response_format(type: Any, **fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": type, **fields}}


def outputs(**fields: Any) -> dict[str, Any]:
    return {"structured_outputs": fields}


def of_schema(schema: Any) -> tuple[StructureKind, str]:
    return StructureKind.JSON_SCHEMA, json.dumps(schema)


@pytest.mark.parametrize(
    ("fields", "kind_and_text", "param"),
    [
        (response_format("json_object"), of_schema({"type": "object"}), "response_format"),
        (
            response_format(
                "json_schema", json_schema={"name": "x", "strict": True, "schema": SCHEMA}
            ),
            of_schema(SCHEMA),
            "response_format",
        ),
        ({"json_schema": SCHEMA}, of_schema(SCHEMA), "json_schema"),
        ({"json_schema": True}, of_schema(True), "json_schema"),
        ({"guided_json": SCHEMA}, of_schema(SCHEMA), "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, of_schema(SCHEMA), "guided_json"),
        ({"guided_regex": "a+"}, (StructureKind.REGEX, "a+"), "guided_regex"),
        ({"guided_choice": ["a"]}, (StructureKind.CHOICE, '["a"]'), "guided_choice"),
        ({"guided_grammar": "x"}, (StructureKind.GRAMMAR, "x"), "guided_grammar"),
        ({"grammar": 'root ::= "a"'}, (StructureKind.GRAMMAR, 'root ::= "a"'), "grammar"),
        (outputs(json=SCHEMA), of_schema(SCHEMA), "structured_outputs.json"),
        (outputs(json=json.dumps(SCHEMA)), of_schema(SCHEMA), "structured_outputs.json"),
        (
            outputs(json_object=True),
            of_schema({"type": "object"}),
            "structured_outputs.json_object",
        ),
        (outputs(regex="a+"), (StructureKind.REGEX, "a+"), "structured_outputs.regex"),
        (
            outputs(choice=["a", "b"]),
            (StructureKind.CHOICE, '["a", "b"]'),
            "structured_outputs.choice",
        ),
        (
            outputs(grammar="start: /a/"),
            (StructureKind.GRAMMAR, "start: /a/"),
            "structured_outputs.grammar",
        ),
    ],
)
def test_each_dialect(fields: Any, kind_and_text: Any, param: str) -> None:
    structure = structure_of(**fields)
    assert structure is not None
    assert (structure.kind, structure.text) == kind_and_text
    assert structure.param == param
    assert not structure.is_compact


@pytest.mark.parametrize(
    "tags",
    [
        {"structures": [TAG], "triggers": ["<f"]},
        json.dumps({"structures": [TAG], "triggers": ["<f"]}),
        {
            "type": "structural_tag",
            "format": {
                "type": "triggered_tags",
                "triggers": ["<f"],
                "tags": [
                    {
                        "type": "tag",
                        "begin": "<f>",
                        "content": {"type": "json_schema", "json_schema": SCHEMA},
                        "end": "</f>",
                    }
                ],
                "at_least_one": False,
            },
        },
    ],
)
def test_tags(tags: Any) -> None:
    structure = structure_of(structured_outputs={"structural_tag": tags})
    assert structure is not None
    read = json.loads(structure.text)
    assert read["triggers"] == ["<f"]
    assert read["tags"] == [TAG]
    assert not read["at_least_one"]
    if isinstance(tags, dict):
        again = structure_of(response_format={**tags, "type": "structural_tag"})
        assert again == structure


@pytest.mark.parametrize(
    "fields",
    [
        {},
        response_format("text"),
        {"grammar": ""},
        {"response_format": None},
        {"structured_outputs": None},
        {"json_schema": None},
    ],
)
def test_nothing_is_asked(fields: Any) -> None:
    assert structure_of(**fields) is None


def test_compact() -> None:
    asked = {"json": SCHEMA, "disable_any_whitespace": True, "disable_fallback": False}
    structure = structure_of(structured_outputs=asked)
    assert structure is not None and structure.is_compact


@pytest.mark.parametrize("depth", [400, 3000, 50_000])
def test_deep_ones_are_short_or_refused(depth: int) -> None:
    """Where they are short the engine counts the levels."""
    schema: Any = {"type": "integer"}
    for _ in range(depth):
        schema = {"items": schema}
    tags = {"structures": [{**TAG, "schema": schema}], "triggers": ["<f"]}
    for fields in ({"json_schema": schema}, outputs(structural_tag=tags)):
        try:
            assert structure_of(**fields) is not None
        except InvalidParameter as error:
            assert depth > 400
            assert "deeply" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {}}, "response_format.type"),
        (response_format("xml"), "response_format.type"),
        (response_format(["text"]), "response_format.type"),
        (response_format("json_schema"), "response_format.json_schema"),
        (response_format("json_schema", json_schema={"name": "x"}), "response_format.json_schema"),
        (response_format("json_schema", json_schema={"schema": 3}), "response_format"),
        (response_format("json_schema", json_schema={"schema": []}), "response_format"),
        (outputs(), "structured_outputs"),
        (outputs(json=SCHEMA, regex="a"), "structured_outputs"),
        (outputs(whitespace_pattern=" "), "structured_outputs.whitespace_pattern"),
        (
            outputs(disable_additional_properties=True, json={}),
            "structured_outputs.disable_additional_properties",
        ),
        (outputs(json="{"), "structured_outputs.json"),
        (outputs(json="[" * 5000), "structured_outputs.json"),
        (outputs(regex=3), "structured_outputs.regex"),
        (outputs(choice=[]), "structured_outputs.choice"),
        (outputs(choice=["a", ""]), "structured_outputs.choice"),
        (outputs(choice=["a", 3]), "structured_outputs.choice"),
        (outputs(choice=["a"] * 5000), "structured_outputs.choice"),
        (outputs(regex="a" * (MAX_CHARS + 1)), "structured_outputs.regex"),
        (outputs(json_object="yes"), "structured_outputs.json_object"),
        (outputs(structural_tag={}), "structured_outputs.structural_tag"),
        (
            outputs(structural_tag={"structures": [3], "triggers": []}),
            "structured_outputs.structural_tag",
        ),
        (
            outputs(structural_tag={"structures": [TAG], "triggers": [3]}),
            "structured_outputs.structural_tag",
        ),
        ({"json_schema": {"const": "x" * MAX_CHARS}}, "json_schema"),
        ({"json_schema": {}, "grammar": "a"}, "json_schema"),
        ({"json_schema": {}, "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_the_rest_is_refused_by_name(fields: Any, param: str) -> None:
    with pytest.raises(EngineError) as caught:
        structure_of(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"json_schema": {"enum": [1] * 600_000}},
        response_format("json_schema", json_schema={"schema": {"enum": [1] * 600_000}}),
        response_format("structural_tag", structures=[1] * 600_000, triggers=[]),
    ],
)
def test_what_is_far_too_long_is_not_written_out(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing it out took a second, in which nobody else was served."""
    monkeypatch.setattr(json, "dumps", lambda *_, **__: pytest.fail("written out"))
    with pytest.raises(InvalidParameter, match=r"has at least 30000\d characters; the limit is"):
        structure_of(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_grammar": 'root ::= "a"', "structured_outputs": {"grammar": 'root ::= "a"'}},
        {"guided_json": SCHEMA, "structured_outputs": {"json": SCHEMA}, "json_schema": SCHEMA},
        {"guided_choice": ["a", "b"], "structured_outputs": {"choice": ["a", "b"]}},
        {"guided_regex": "a+", "structured_outputs": {"regex": "a+"}},
    ],
    ids=str,
)
def test_an_old_and_a_new_name_may_ask_for_the_same(fields: dict[str, Any]) -> None:
    """guidance sends both, whichever vLLM it finds."""
    last = list(fields)[-1]
    asked = structure_of(**fields)
    assert asked is not None and asked == structure_of(**{last: fields[last]})
    different = {**fields, "structured_outputs": {"regex": "something else"}}
    with pytest.raises(InvalidParameter, match="both set the form of the text"):
        structure_of(**different)
