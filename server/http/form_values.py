"""Reads form fields, which are text, as the types that a request model declares.

The reading is strict: what JSON would not accept as the field's type is refused here too. An empty
value of a field that is not free text means null, as clients write it.
"""

import json
import re
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from engine.errors import InvalidParameter
from server.http.multipart import Form, Part

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")
_BRACKETS = re.compile(r"([^\[\]]+)\[([^\[\]]+)\]")
_BOOLEANS = {"true": True, "false": False}


def read_fields(form: Form, model: type[BaseModel], skip: Sequence[str]) -> dict[str, Any]:
    """The form as the object that a JSON body would be.

    `outpaint[left]=8` is a field of an object, as the OpenAI client writes it; an object's field
    may also hold JSON. Fields that the model does not know stay text.

    Args:
        skip: field names that the caller reads itself.

    Raises:
        InvalidParameter: a value is not of its field's type, or a field is given twice.
    """
    values: dict[str, Any] = {}
    objects: dict[str, dict[str, Any]] = {}
    for name, parts in form.items():
        if name in skip:
            continue
        text = _single(parts).text()
        if bracketed := _BRACKETS.fullmatch(name):
            outer, key = bracketed.groups()
            inner = read_value(f"{outer}.{key}", text, _inner_kind(model, outer, key))
            objects.setdefault(outer, {})[key] = inner
        else:
            values[name] = read_value(name, text, _kind(model, name))
    for name in values.keys() & objects.keys():
        raise _given_twice(name)
    return values | objects


def read_value(name: str, text: str, kind: Any) -> Any:
    """A text read as `kind`: bool, int, float, str, a model or a list as JSON, or a `Literal` of
    strings."""
    if kind is str:
        return text
    if not text:
        return None
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise InvalidParameter(f"{name} must be true or false", param=name)
        return _BOOLEANS[text.lower()]
    if kind is int:
        if not _INTEGER.fullmatch(text):
            raise InvalidParameter(f"{name} must be an integer", param=name)
        return int(text)
    if kind is float:
        if not _NUMBER.fullmatch(text):
            raise InvalidParameter(f"{name} must be a number", param=name)
        return float(text)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _read_object(name, text)
    if get_origin(kind) is list:
        return _read_list(name, text)
    return text


def _single(parts: Sequence[Part]) -> Part:
    if len(parts) > 1:
        raise _given_twice(parts[0].name)
    return parts[0]


def _given_twice(name: str) -> InvalidParameter:
    return InvalidParameter(f"{name} is given more than once; give it once", param=name)


def _read_object(name: str, text: str) -> Mapping[str, Any]:
    value = _parsed(text)
    if not isinstance(value, dict):
        raise InvalidParameter(
            f"{name} must be a JSON object, or one form field per value, such as {name}[key]",
            param=name,
        )
    return value


def _read_list(name: str, text: str) -> Sequence[Any]:
    value = _parsed(text)
    if not isinstance(value, list):
        raise InvalidParameter(f"{name} must be a JSON array", param=name)
    return value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _kind(model: type[BaseModel], name: str) -> Any:
    """A field's type, without being optional; text for an unknown field."""
    field = model.model_fields.get(name)
    return str if field is None else _plain(field.annotation)


def _inner_kind(model: type[BaseModel], name: str, key: str) -> Any:
    kind = _kind(model, name)
    return _kind(kind, key) if isinstance(kind, type) and issubclass(kind, BaseModel) else str


def _plain(annotation: Any) -> Any:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return _plain(next(arg for arg in get_args(annotation) if arg is not type(None)))
    return annotation if origin is not Literal else Literal
