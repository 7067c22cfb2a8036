"""Checks and adapts a JSON Schema before llguidance reads it.

llguidance refuses by name the keywords that it does not honour. This module handles the rest: what
would cost it too much, and the few places where it would allow more than the schema does, as the
official test suite shows (`tests/engine/llm/structure/test_json_schema.py`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from engine.errors import InvalidParameter
from engine.llm.structure.closed_objects import close_objects

MAX_PROPERTIES = 2000
"""The most properties of all objects together."""
MAX_VALUES = 10_000
"""The most values of all enums together."""
MAX_MULTIPLE = 10_000
"""The largest sum of all `multipleOf`, or of their reciprocals: each is an automaton of that many
states."""
MAX_EXACT = 1 << 53
"""The largest exact whole number. llguidance reads numbers as floats, so one beyond this may be
taken for its neighbour."""
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")

_DATA = frozenset(("const", "enum", "default", "example", "examples"))
"""Keywords whose value is not a schema."""
_LEAP_YEAR = "(?:(?:[02468][048]|[13579][26])00|[0-9]{2}(?:0[48]|[2468][048]|[13579][26]))"
_DATE = (
    f"^(?:{_LEAP_YEAR}-02-29|[0-9]{{4}}-(?:0[13-9]|1[0-2])-[0-9]{{2}}"
    "|[0-9]{4}-02-(?:[01][0-9]|2[0-8]))"
)
_TIME = "[0-9]{2}:[0-9]{2}:[0-5]"
_PATTERNS = {"date": _DATE, "time": f"^{_TIME}", "date-time": f"{_DATE}[Tt]{_TIME}"}
"""Further rules of formats: February has 29 days only in leap years, and there is no leap second,
which few readers accept."""


def readable_schema(schema: Any, param: str) -> Any:
    """Return the schema as llguidance must read it.

    Raises:
        InvalidParameter: the schema cannot be honoured; the error names the keyword.
    """
    if not isinstance(schema, Mapping | bool):
        raise InvalidParameter(
            f"{param} must be an object or a boolean, as any JSON Schema", param=param
        )
    _check(schema, param)
    readable = _with_exact_dates(schema)
    close_objects(readable)
    return readable


def _check(schema: Any, param: str) -> None:
    num_properties = num_values = 0
    multiples = 0.0
    for node in _objects(schema):
        if "x-guidance" in node:
            raise InvalidParameter(
                f"{param} has x-guidance, which is not supported; leave it out", param=param
            )
        _check_numbers(node, param)
        num_properties += _size(node.get("properties"))
        num_values += _size(node.get("enum"))
        multiple = node.get("multipleOf")
        if isinstance(multiple, int | float) and multiple > 0:
            multiples += max(multiple, 1 / multiple)
    for number, most, what in (
        (num_properties, MAX_PROPERTIES, "properties"),
        (num_values, MAX_VALUES, "enum values"),
        (multiples, MAX_MULTIPLE, "as the sum of multipleOf, or of 1 / multipleOf"),
    ):
        if number > most:
            raise InvalidParameter(
                f"{param} has {number:g} {what}; the limit is {most}: make it smaller", param=param
            )


def _check_numbers(node: Mapping[str, Any], param: str) -> None:
    numbers = [
        (name, value) for name in ("const", "enum") for value in _whole_numbers(node.get(name))
    ]
    numbers += [(name, node[name]) for name in _BOUNDS if isinstance(node.get(name), int | float)]
    for keyword, number in numbers:
        if abs(number) > MAX_EXACT - keyword.startswith("exclusive"):
            raise InvalidParameter(
                f"{param} has the {keyword} {str(number)[:24]}; numbers beyond {MAX_EXACT} lose "
                "their last digits: make them strings, or leave them out",
                param=param,
            )


def _whole_numbers(value: Any) -> Iterator[int]:
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, int):
            yield one
        elif isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, list):
            left += one


def _with_exact_dates(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_exact_dates(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    read = {
        name: value if name in _DATA else _with_exact_dates(value) for name, value in schema.items()
    }
    form = schema.get("format")
    if isinstance(form, str) and form in _PATTERNS:
        others = read.get("allOf")
        read["allOf"] = [
            *(others if isinstance(others, list) else ()),
            {"pattern": _PATTERNS[form]},
        ]
    return read


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Mapping | list) else 0


def _objects(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all objects in a schema, whatever their role."""
    left = [schema]
    while left:
        node = left.pop()
        if isinstance(node, Mapping):
            yield node
            left += node.values()
        elif isinstance(node, list):
            left += node
