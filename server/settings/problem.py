"""Turns a wrong setting into one line that says what is wrong and where it was written."""

import difflib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

ENV_PREFIX = "TANDEM_"

_SINGULAR = {
    "models": "model",
    "loadable_models": "loadable_model",
    "loadable_loras": "loadable_lora",
    "api_keys": "api_key",
    "admin_keys": "admin_key",
    "cors_allow_origins": "cors_allow_origin",
}
_SECRET = {"api_keys", "admin_keys", "api_key_file", "api_key"}


class SettingsProblem(Exception):
    """A setting that cannot be used. `str(problem)` is one line for the operator."""


def option_name(field_name: str) -> str:
    """The command-line option of a setting; the option of a list takes one element at a time."""
    return "--" + _SINGULAR.get(field_name, field_name).replace("_", "-")


def variable_name(field_name: str, *, engine: bool = False) -> str:
    """The environment variable of a setting."""
    return f"{ENV_PREFIX}{'ENGINE__' if engine else ''}{field_name}".upper()


@dataclass(frozen=True)
class Origins:
    """The sources of settings.

    Attributes:
        given: values from the command line.
        variables: names of all environment variables, in upper case.
        known: names of all settings.
    """

    given: Mapping[str, Any]
    variables: Set[str]
    known: Sequence[str]

    def problem(self, error: ErrorDetails) -> SettingsProblem:
        """The line about a value that validation refused."""
        location = tuple(str(part) for part in error["loc"] if not isinstance(part, int))
        if error["type"] == "extra_forbidden":
            name = ".".join(location)
            hint = did_you_mean(name, self.known)
            return SettingsProblem(one_line(f"there is no setting {name}{hint}"))
        message = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
        message = message.replace("String should", "must")
        value = error["input"]
        show = isinstance(value, str | int | float) and location and location[0] not in _SECRET
        subject = f"{self._origin(location)}{f' is {value!r}' if show else ''}"
        return SettingsProblem(one_line(f"{subject}: {message}" if subject else message))

    def engine_problem(self, location: tuple[str, ...], message: str) -> SettingsProblem:
        """The line about a value that the engine's own check refused; the check's message repeats
        the name."""
        message = message.removeprefix(f"{location[-1]} is ")
        verb = " is " if message[:1].isdigit() or message[:1] == "-" else ": "
        return SettingsProblem(one_line(f"{self._origin(location)}{verb}{message}"))

    def _origin(self, location: tuple[str, ...]) -> str:
        """A setting's name as it was written: an option, a variable, or a name in the file."""
        if not location:
            return ""
        head = location[0]
        knob = location[1] if head == "engine" and len(location) > 1 else None
        if head in self.given and (knob is None or knob in self.given[head]):
            return option_name(knob or head)
        variable = variable_name(knob or head, engine=knob is not None)
        if variable in self.variables:
            return variable
        name = ".".join((head, knob)) if knob else head
        return f"{name} in {self.given['config']}" if "config" in self.given else name


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def one_line(text: str) -> str:
    return " ".join(text.split())
