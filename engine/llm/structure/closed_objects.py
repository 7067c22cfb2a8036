"""Closes objects: those whose schema lists properties get no others, unless the schema says so
itself.

JSON Schema leaves objects open. Few authors of a schema for answers mean that, and a small model
then invents properties until its budget ends. vLLM, llama.cpp and Ollama close objects as well.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

_Node = dict[str, Any]

_ALTERNATIVES = ("anyOf", "oneOf")
_SAYS_SO = frozenset(
    ("additionalProperties", "patternProperties", "unevaluatedProperties", "const", "enum")
)
"""Keywords with which a schema itself says what else an object may have."""
_OF_OBJECTS = frozenset(("properties", "required", *_SAYS_SO))
_HOLDS_SCHEMAS = ("properties", "patternProperties")
_HOLDS_SCHEMA = ("additionalProperties", "items", "prefixItems", "contains")


def close_objects(schema: Any) -> None:
    """Close the objects of a schema, in place.

    Several schemas may describe one object, by `allOf` or beside a `$ref`. It can have the
    properties that any of them lists, so none of these is closed alone. A definition that is also
    referred to alone is closed there, beside the reference.
    """
    closing = _Closing(schema)
    closing.look_at_all()
    closing.close()


class _Closing:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._alone: dict[int, tuple[_Node, list[tuple[_Node, list[Any]]]]] = {}
        """Schemas that are the only ones to list the properties of some object; for each such
        object, its schema and these properties."""
        self._together: dict[int, set[int]] = {}
        """Of the others, which schemas they are parts of."""
        self._wholes: list[tuple[_Node, list[str]]] = []
        """Those schemas, and all properties that their parts list."""

    def look_at_all(self) -> None:
        """Look at every schema that something in the text must fit."""
        seen: set[int] = set()
        left = [self._root]
        while left:
            schema = left.pop()
            if isinstance(schema, dict) and id(schema) not in seen:
                seen.add(id(schema))
                left += self._look_at(schema)

    def close(self) -> None:
        for lists, uses in self._alone.values():
            if id(lists) in self._together:
                self._wholes += uses
            else:
                _close(lists, [name for _, names in uses for name in names])
        for schema, names in self._wholes:
            if not self._together.get(id(schema), set()) - {id(schema)}:
                _close(schema, names)

    def _look_at(self, schema: _Node) -> list[Any]:
        """Sort a schema's parts. Returns the schemas of what is in it, and its alternatives if
        these describe the whole value."""
        parts = list(self._parts(schema))
        choosing = [part for part in parts if part.keys() & set(_ALTERNATIVES)]
        left = []
        if len(choosing) == 1 and not any(part.keys() & _OF_OBJECTS for part in parts):
            left = [one for name in _ALTERNATIVES for one in _list(choosing[0].get(name))]
        elif choosing:
            parts = list(self._parts(schema, *_ALTERNATIVES))
        self._sort(schema, parts)
        return left + [inner for part in parts for inner in _inner(part)]

    def _sort(self, schema: _Node, parts: list[_Node]) -> None:
        listing = [part for part in parts if isinstance(part.get("properties"), dict)]
        names = [name for part in listing for name in part["properties"]]
        names += [name for part in parts for name in _list(part.get("required"))]
        names = list(dict.fromkeys(name for name in names if isinstance(name, str)))
        is_open = any(part.keys() & _SAYS_SO or _least(part) > len(names) for part in parts)
        if len(listing) == 1 and not is_open:
            self._alone.setdefault(id(listing[0]), (listing[0], []))[1].append((schema, names))
        elif listing:
            for part in parts:
                self._together.setdefault(id(part), set()).add(id(schema))
            self._wholes += [] if is_open else [(schema, names)]

    def _parts(self, schema: _Node, *keywords: str) -> Iterator[_Node]:
        """Yield all schemas that describe the same value as this one, and the schema itself."""
        seen: set[int] = set()
        left: list[Any] = [schema]
        while left:
            part = left.pop()
            if not isinstance(part, dict) or id(part) in seen:
                continue
            seen.add(id(part))
            yield part
            left += [one for name in ("allOf", *keywords) for one in _list(part.get(name))][::-1]
            if "$ref" in part:
                left.append(self._target(part["$ref"]))

    def _target(self, reference: Any) -> Any:
        """Find what a reference points to; None unless it is a place within this schema."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        target = self._root
        for step in unquote(reference).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
                target = target[int(name)]
            else:
                target = target.get(name) if isinstance(target, dict) else None
        return target


def _close(schema: _Node, names: list[str]) -> None:
    own = schema.get("properties", {})
    if isinstance(own, dict):
        schema["properties"] = {**own, **{name: True for name in names if name not in own}}
        schema["additionalProperties"] = False


def _least(schema: _Node) -> int:
    """How many properties it demands."""
    least = schema.get("minProperties")
    return least if isinstance(least, int) else 0


def _inner(schema: _Node) -> Iterator[Any]:
    for name in _HOLDS_SCHEMAS:
        inner = schema.get(name)
        yield from inner.values() if isinstance(inner, dict) else ()
    for name in _HOLDS_SCHEMA:
        inner = schema.get(name)
        yield from inner if isinstance(inner, list) else (inner,)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
