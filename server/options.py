"""`tandem serve`'s options, made from the settings: one place says what each is and allows.

Values go to `server.settings` as they were typed. It checks them, whichever source they come from.
"""

import inspect
import types
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import SecretStr

from engine.config import EngineConfig
from server.settings import Settings, engine_knobs
from server.settings_problem import option_name, variable_name

_METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH", SecretStr: "KEY"}


def serve_signature() -> inspect.Signature:
    """Models as arguments, then one option per setting and per engine knob; None is not given."""
    models = typer.Argument(metavar="MODEL", help="The same as --model.", show_default=False)
    parameters = [_parameter("model_arguments", list[str], models)]
    for name, field in Settings.model_fields.items():
        if name != "engine":
            default = field.get_default(call_default_factory=True)
            parameters.append(_option(name, field.annotation, default, field.description or ""))
    hints = get_type_hints(EngineConfig)
    knobs = {f.name: f for f in fields(EngineConfig)}
    for name in engine_knobs():
        knob = knobs[name]
        help = knob.metadata["help"]
        parameters.append(_option(name, hints[name], knob.default, help, engine=True))
    return inspect.Signature(parameters)


def given_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, in the shape of `Settings`."""
    given = {name: value for name, value in values.items() if value not in (None, [])}
    models = [*given.pop("model_arguments", []), *given.pop("models", [])]
    engine = {name: given.pop(name) for name in engine_knobs() if name in given}
    if models:
        given["models"] = models
    if engine:
        given["engine"] = engine
    return given


def _option(
    name: str, annotation: Any, default: Any, help: str, *, engine: bool = False
) -> inspect.Parameter:
    kind = _plain_type(annotation)
    declaration = option_name(name)
    if kind is bool:
        declaration += f"/--no-{declaration.removeprefix('--')}"
    option = typer.Option(
        declaration,
        help=f"{help} [{variable_name(name, engine=engine)}{_shown(default)}]",
        metavar=None if kind is bool else _metavar(kind),
        show_default=False,
    )
    if kind is bool:
        return _parameter(name, bool, option)
    return _parameter(name, list[str] if get_origin(kind) is tuple else str, option)


def _parameter(name: str, kind: Any, info: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, info],
    )


def _plain_type(annotation: Any) -> Any:
    """Without `None` and without what `Annotated` adds."""
    if get_origin(annotation) is Annotated:
        return _plain_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _plain_type(next(a for a in get_args(annotation) if a is not type(None)))
    return annotation


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return _metavar(_plain_type(get_args(kind)[0]))
    return _METAVARS[kind]


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        default = "on" if default else "off"
    if isinstance(default, tuple):
        default = ", ".join(default)
    if isinstance(default, float):
        default = f"{default:g}"
    return "" if default in (None, "") else f"; default {default}"
