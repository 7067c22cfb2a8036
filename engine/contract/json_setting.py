"""Settings that are JSON objects, in the form of another server's: dataclasses whose fields are
checked by name, type and bounds."""

from collections.abc import Mapping
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from engine.contract.knob import check_bounds
from engine.errors import InvalidParameter

T = TypeVar("T")


def read_object(kind: type[T], given: Mapping[str, Any], setting: str) -> T:
    """Make a dataclass of the fields that are given.

    Args:
        kind: has fields of plain types, of strings in a `Literal`, and of these or None.
        setting: the name of the setting, for errors.

    Raises:
        InvalidParameter: there is no such field, or a value has another type or is out of bounds.
    """
    kinds = get_type_hints(kind)
    for name, value in given.items():
        if name not in kinds:
            refuse(setting, f"there is no field {name}; its fields are {', '.join(kinds)}")
        allowed = get_args(kinds[name])
        is_choice = bool(allowed) and NoneType not in allowed
        if is_choice and value not in allowed:
            refuse(setting, f"{name} must be one of {', '.join(allowed)}")
        if not is_choice and type(value) not in (allowed or (kinds[name],)):
            refuse(setting, f"{name} must not be {value!r}")
    made = kind(**given)
    try:
        check_bounds(made)
    except InvalidParameter as error:
        refuse(setting, error.message)
    return made


def refuse(setting: str, reason: str) -> NoReturn:
    """Raise an error about a setting."""
    raise InvalidParameter(f"{setting}: {reason}", param=setting)
