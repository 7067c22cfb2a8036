"""The options of `tandem serve`, made from the settings, so that each setting is described in one
place.

Values go to `server.settings` as they were typed. It checks values from all sources.
"""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from server.process.help import FEW, place_in_help, short_form, short_text, show_all
from server.settings import engine_knobs
from server.settings.reference import SettingRow, setting_rows


def serve_signature() -> inspect.Signature:
    """Models as arguments, then one option per setting and per engine setting; None means not
    given."""
    models = typer.Argument(metavar="MODEL", help="The same as --model.", show_default=False)
    options = [_option(row) for row in sorted(setting_rows(), key=place_in_help)]
    every = typer.Option(
        "--help-all",
        help="Show every option, in groups, and exit.",
        is_eager=True,
        callback=show_all,
        show_default=False,
    )
    return inspect.Signature(
        [
            _parameter("model_arguments", list[str], models),
            *options,
            _parameter("help_all", bool, every),
        ]
    )


def given_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given, in the form of `Settings`."""
    given = {name: value for name, value in values.items() if value not in (None, [])}
    given.pop("help_all", None)
    models = [*given.pop("model_arguments", []), *given.pop("models", [])]
    engine = {name: given.pop(name) for name in engine_knobs() if name in given}
    if models:
        given["models"] = models
    if engine:
        given["engine"] = engine
    return given


def _option(row: SettingRow) -> inspect.Parameter:
    is_flag = row.kind is bool
    negative = f"/--no-{row.option.removeprefix('--')}" if is_flag else ""
    option = typer.Option(
        row.option + negative,
        help=short_text(row),
        metavar=None if is_flag else short_form(row),
        show_default=False,
        hidden=row.name not in FEW,
    )
    kind = bool if is_flag else list[str] if row.is_list else str
    return _parameter(row.name, kind, option)


def _parameter(name: str, kind: Any, info: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, info],
    )
