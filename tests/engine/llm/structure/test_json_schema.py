"""Which schemas are honoured, by the official test suite: what is taken is followed, the rest is
refused by name."""

import json
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from llguidance import LLMatcher

from engine.contract.structure import Structure
from engine.errors import InvalidParameter
from tests.helpers.llm import byte_tokens

SUITE = json.loads((Path(__file__).parents[3] / "data" / "json_schema_test_suite.json").read_text())
GROUPS = [(name, group) for name, groups in SUITE.items() for group in groups]
LEAST_HONOURED = 173
"""The least number of groups that are honoured; a new llguidance may honour more."""


def matcher(schema: object, **options: object) -> LLMatcher:
    return byte_tokens.matcher(Structure.of_schema(schema, **options))


def allows(matcher: LLMatcher, value: object) -> bool:
    return byte_tokens.allows(matcher, json.dumps(value, ensure_ascii=False))


def test_what_is_taken_is_followed():
    """Nothing that a schema forbids can be written."""
    num_honoured = num_valid = num_taken = 0
    for name, group in GROUPS:
        try:
            made = matcher(group["schema"])
        except InvalidParameter:
            continue
        num_honoured += 1
        for case in group["tests"]:
            taken = allows(made, case["data"])
            assert case["valid"] or not taken, (name, group["description"], case["description"])
            num_valid += case["valid"]
            num_taken += taken
    assert num_honoured >= LEAST_HONOURED
    # Not all: properties come in the schema's order, 1.0 is not 1, formats are more than notes.
    assert num_taken > 0.9 * num_valid


KEYWORDS = st.sampled_from(
    [
        *("type", "enum", "const", "properties", "required", "items", "prefixItems", "minItems"),
        *("maxItems", "minLength", "maxLength", "pattern", "format", "anyOf", "allOf", "oneOf"),
        *("$ref", "$defs", "$id", "multipleOf", "minimum", "exclusiveMaximum", "not", "if"),
        *("additionalProperties", "patternProperties", "minProperties", "$schema", "x-guidance"),
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=True)
    | st.sampled_from(["string", "object", "array", "#", "#/$defs/a", "date", "a{1,99}", "^("])
    | st.just("\ud800")
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYWORDS | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=20,
)


@hypothesis.settings(max_examples=300, deadline=None, database=None)
@hypothesis.given(schema=VALUES)
def test_whatever_is_sent_is_taken_or_refused(schema):
    """What is taken allows something, or says at its first token that it takes too much."""
    try:
        made = matcher(schema)
    except InvalidParameter:
        return
    allowed = made.compute_bitmask()
    assert made.is_error() or any(allowed)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"if": {"type": "string"}, "then": {"minLength": 2}}, "if"),
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "array", "contains": {"type": "string"}}, "contains"),
        ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "use anyOf"),
        ({"type": "string", "format": "iri"}, "iri"),
        ({"$ref": "https://example.com/schema.json"}, "example.com"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"type": "string", "pattern": "(?=a)b"}, "look"),
        ({"type": "strnig"}, "strnig"),
        ({"x-guidance": {"lenient": True}, "uniqueItems": True}, "x-guidance"),
        ({"properties": {"a": {"x-guidance": {}}}}, "x-guidance"),
        ({"type": "integer", "multipleOf": 999_983}, "multipleOf"),
        ({"type": "number", "multipleOf": 1e-30}, "multipleOf"),
        ({"const": {"id": [123456789012345678]}}, "const 123456789012345678"),
        ({"enum": ["a", 2**53 + 1]}, "enum"),
        ({"type": "integer", "minimum": 10**30, "maximum": 10**31}, "minimum 1000000"),
        ({"type": "integer", "exclusiveMinimum": 2**53}, "exclusiveMinimum"),
        ({"enum": list(range(11_000))}, "enum"),
        ({"properties": {f"f{i}": {} for i in range(3000)}}, "properties"),
        ({"enum": ["x" * 200_000]}, "characters"),
        ({"minLength": 3, "maxLength": 2, "type": "string"}, "minLength"),
        (False, "schema is false"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_rest_is_refused_by_name(schema, named):
    with pytest.raises(InvalidParameter, match=named) as caught:
        matcher(schema, param="json_schema")
    assert caught.value.param == "json_schema"
    assert len(caught.value.message) < 700


def test_nesting_is_bounded():
    schema: object = {"type": "integer"}
    for _ in range(400):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InvalidParameter, match=r"recursion|nested"):
        matcher(schema)


@pytest.mark.parametrize(
    ("date", "exists"),
    [
        ("2024-02-29", True), ("2023-02-29", False), ("1900-02-29", False), ("2000-02-29", True),
        ("2023-04-31", False), ("2023-12-31", True),
    ],
)  # fmt: skip
def test_dates_exist(date, exists):
    """This holds also where the schema has patterns of its own."""
    for form, value in (("date", date), ("date-time", f"{date}T10:20:30Z")):
        for more in ({}, {"pattern": "^."}, {"allOf": [{"maxLength": 30}]}):
            schema = {"type": "string", "format": form, **more}
            assert allows(matcher(schema), value) is exists
    data = {"const": {"format": "date"}}
    assert allows(matcher(data), {"format": "date"})


def test_compact_json_has_no_optional_spaces():
    schema = {"type": "object", "properties": {"a": {"type": "array"}}, "required": ["a"]}
    made = matcher(schema, is_compact=True)
    assert made.try_consume_tokens(list(b'{"a": [1, 2]')) == 12
    assert made.try_consume_tokens(list(b" ")) == 0
    assert bytes(made.compute_ff_tokens()) == b"}"
