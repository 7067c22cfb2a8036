"""Objects whose schema lists properties have no others, however it says which these are."""

import json
import random

import pytest

from engine.contract.structure import Structure, Tag, Tags
from engine.llm.structure.closed_objects import close_objects
from tests.helpers.llm import byte_tokens
from tests.helpers.llm.byte_tokens import matcher


def allows(schema: object, value: object) -> bool:
    return byte_tokens.allows(matcher(Structure.of_schema(schema)), json.dumps(value))


INT = {"type": "integer"}
A = {"type": "object", "properties": {"a": INT}, "required": ["a"]}
B = {"type": "object", "properties": {"b": INT}, "required": ["b"]}
LARGER = {"allOf": [{"$ref": "#/$defs/A"}, B]}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (A, {"a": 1}, {"a": 1, "x": 1}),
        ({**A, "properties": {}}, {"a": [1]}, {"a": 1, "x": 1}),
        ({"type": "object", "properties": {}}, {}, {"x": 1}),
        ({**A, "minProperties": 1}, {"a": 1}, {"a": 1, "x": 1}),
        ({"properties": {"in": A}}, {"in": {"a": 1}}, {"in": {"a": 1, "x": 1}}),
        ({"items": A}, [{"a": 1}], [{"a": 1, "x": 1}]),
        ({"prefixItems": [A, B]}, [{"a": 1}, {"b": 1}], [{"a": 1}, {"b": 1, "a": 1}]),
        ({"additionalProperties": A}, {"k": {"a": 1}}, {"k": {"a": 1, "x": 1}}),
        ({"anyOf": [A, {"type": "null"}]}, {"a": 1}, {"a": 1, "x": 1}),
        ({"anyOf": [A, B]}, {"b": 1}, {"b": 1, "a": 1}),
        ({"$ref": "#/$defs/A", "$defs": {"A": A}}, {"a": 1}, {"a": 1, "x": 1}),
        ({"allOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": A}}, {"a": 1}, {"a": 1, "x": 1}),
        ({"allOf": [A, B]}, {"a": 1, "b": 1}, {"a": 1, "b": 1, "x": 1}),
        ({**A, "allOf": [B]}, {"a": 1, "b": 1}, {"a": 1, "b": 1, "x": 1}),
        ({**A, "anyOf": [B, {"required": ["c"]}]}, {"a": 1, "c": 1}, {"a": 1, "c": 1, "x": 1}),
        ({"anyOf": [A, {"type": "null"}], "required": ["c"]}, {"a": 1, "c": 1}, {"a": 1, "x": 1}),
        (
            {"allOf": [{"$ref": "#/$defs/A"}, B], "$defs": {"A": A}},
            {"a": 1, "b": 1},
            {"a": 1, "b": 1, "x": 1},
        ),
        (
            {
                "$ref": "#/$defs/N",
                "$defs": {"N": {"properties": {"next": {"anyOf": [{"$ref": "#"}, INT]}}}},
            },
            {"next": {"next": 1}},
            {"next": {"next": 1, "x": 1}},
        ),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_is_not_listed_cannot_be_written(schema, right, wrong):
    assert allows(schema, right)
    assert not allows(schema, wrong)


@pytest.mark.parametrize(
    ("schema", "right"),
    [
        ({"type": "object"}, {"x": 1}),
        ({**A, "additionalProperties": True}, {"a": 1, "x": 1}),
        ({**A, "additionalProperties": INT}, {"a": 1, "x": 1}),
        ({**A, "patternProperties": {"^x": INT}}, {"a": 1, "x": 1}),
        ({**A, "minProperties": 2}, {"a": 1, "x": 1}),
        ({**A, "enum": [{"a": 1, "x": 1}]}, {"a": 1, "x": 1}),
        ({"allOf": [A, {"additionalProperties": True}]}, {"a": 1, "x": 1}),
        (
            {
                "allOf": [{"$ref": "#/properties/c"}, {"properties": {"c": True}}],
                "properties": {"c": {"allOf": [A, B]}},
            },
            {"a": 1, "b": 1, "c": {"a": 1, "b": 1}},
        ),
        (
            {
                "anyOf": [{"$ref": "#/$defs/A"}, {"type": "array", "items": LARGER}],
                "$defs": {"A": {**A, "minProperties": 2}},
            },
            {"a": 1, "x": 1},
        ),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_says_so_stays_open(schema, right):
    assert allows(schema, right)


ONE_AND_BOTH = {
    "properties": {
        "one": {"$ref": "#/$defs/A"},
        "some": {"type": "array", "items": {"$ref": "#/$defs/A"}},
        "maybe": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]},
        "both": {"$ref": "#/$defs/AB"},
        "any": {"$ref": "#/$defs/A", "additionalProperties": True},
    },
    "$defs": {"A": A, "AB": {**B, "allOf": [{"$ref": "#/$defs/A"}]}},
}


@pytest.mark.parametrize(
    ("place", "right"),
    [
        ("one", {"a": 1}),
        ("some", [{"a": 1}]),
        ("maybe", {"a": 1}),
        ("both", {"b": 1, "a": 1}),
    ],
)
def test_a_definition_is_closed_alone_and_together_with_others(place, right):
    def with_more(value):
        return [with_more(one) for one in value] if isinstance(value, list) else {**value, "x": 1}

    assert allows(ONE_AND_BOTH, {place: right})
    assert not allows(ONE_AND_BOTH, {place: with_more(right)})
    assert allows(ONE_AND_BOTH, {"any": {"a": 1, "x": 1}})


def test_so_it_is_for_calls():
    tag = Tag("<f>", A, "</f>")
    structure = Tags(tags=[tag], triggers=["<f>"], has_text=False, answer=B).structure()
    for text, is_right in (
        ('<f>{"a": 1}</f>', True),
        ('<f>{"a": 1, "x": 1}</f>', False),
        ('{"b": 1}', True),
        ('{"b": 1, "x": 1}', False),
    ):
        taking = matcher(structure)
        assert (taking.try_consume_tokens(list(text.encode())) == len(text)) is is_right


def some_schema(rng: random.Random, depth: int) -> tuple[object, object]:
    """A schema of objects within each other, and a value with all that it lists."""
    match rng.choice(["object", "object", "array", "any", "all"]) if depth else "leaf":
        case "leaf":
            return INT, rng.randrange(100)
        case "array":
            schema, value = some_schema(rng, depth - 1)
            return {"type": "array", "items": schema}, [value]
        case "any":
            schema, value = some_schema(rng, depth - 1)
            return {"anyOf": [{"type": "null"}, schema]}, value
    names = rng.sample("abcdefgh", rng.randint(1, 3))
    made = {name: some_schema(rng, depth - 1) for name in names}
    value = {name: one for name, (_, one) in made.items()}
    listed = [{"properties": {name: schema}} for name, (schema, _) in made.items()]
    if len(listed) > 1 and rng.random() < 0.5:
        return {"type": "object", "allOf": listed, "required": names}, value
    properties = {name: schema for name, (schema, _) in made.items()}
    return {"type": "object", "properties": properties, "required": names}, value


def objects_in(value: object) -> list[dict[str, object]]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [each for one in inner for each in objects_in(one)]
    return [*found, value] if isinstance(value, dict) else found


def test_one_more_is_too_many_anywhere(rng):
    for _ in range(20):
        schema, value = some_schema(rng, 4)
        assert allows(schema, value), (schema, value)
        for place in objects_in(value):
            place["x"] = 1
            assert not allows(schema, value), (schema, value)
            del place["x"]


def test_a_schema_of_any_form_ends(rng):
    """This includes schemas whose references form circles."""
    names = ["allOf", "anyOf", "properties", "items", "$ref", "required", "a"]

    def anything(depth):
        kind = rng.randrange(4) if depth else 0
        if kind == 0:
            return rng.choice([True, 3, None, "#", "#/allOf/0", "#/properties/a", "a"])
        if kind == 1:
            return [anything(depth - 1) for _ in range(rng.randrange(3))]
        return {rng.choice(names): anything(depth - 1) for _ in range(4)}

    for _ in range(300):
        close_objects(anything(6))
