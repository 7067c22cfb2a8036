"""All settings as rows: the command line's options, `configs/default.yaml` and the docs' table.

`python -m server.settings.reference yaml > configs/default.yaml` rewrites the file; `table` prints
the table for the docs.
"""

import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import SecretStr

from engine.contract.settings import EngineConfig
from server.settings.problem import option_name, variable_name
from server.settings.settings import Settings, engine_knobs

_KIND_NAMES = {
    bool: "on|off",
    int: "INT",
    float: "NUMBER",
    str: "TEXT",
    Path: "PATH",
    SecretStr: "KEY",
}

_YAML_HEAD = """\
# Every setting with its default, for `tandem serve --config FILE`. Copy it and keep what you
# change. Environment variables (TANDEM_PORT, TANDEM_ENGINE__MAX_NUM_SEQS) come before the file,
# and options of the command line before both.
"""


@dataclass(frozen=True, slots=True)
class SettingRow:
    """A setting. `kind` is its plain type, or a list's element type; `form` says which values are
    allowed if the type does not."""

    name: str
    kind: Any
    default: Any
    help: str
    is_engine: bool
    is_list: bool
    form: str | None = None

    @property
    def option(self) -> str:
        return option_name(self.name)

    @property
    def variable(self) -> str:
        return variable_name(self.name, engine=self.is_engine)

    @property
    def kind_name(self) -> str:
        """The allowed values, as the help shows them."""
        if self.form is not None:
            return self.form
        if get_origin(self.kind) is Literal:
            return "|".join(get_args(self.kind))
        return _KIND_NAMES[self.kind]

    @property
    def default_text(self) -> str:
        """The default as it is written in the file; empty if there is none."""
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        if isinstance(self.default, tuple):
            return ", ".join(self.default)
        if isinstance(self.default, float):
            return f"{self.default:g}"
        return "" if self.default is None else str(self.default)


def setting_rows() -> list[SettingRow]:
    """The server's settings, then the engine's."""
    return [*_server_rows(), *_engine_rows()]


def _server_rows() -> Iterator[SettingRow]:
    for name, field in Settings.model_fields.items():
        if name != "engine":
            default = field.get_default(call_default_factory=True)
            yield _row(name, field.annotation, default, field.description or "")


def _engine_rows() -> Iterator[SettingRow]:
    hints = get_type_hints(EngineConfig)
    knobs = {knob.name: knob for knob in fields(EngineConfig)}
    for name in engine_knobs():
        knob = knobs[name]
        row = _row(name, hints[name], knob.default, knob.metadata["help"], is_engine=True)
        yield replace(row, form=knob.metadata["form"])


def _row(
    name: str, annotation: Any, default: Any, help: str, *, is_engine: bool = False
) -> SettingRow:
    kind = _plain_type(annotation)
    is_list = get_origin(kind) is tuple
    element = _plain_type(get_args(kind)[0]) if is_list else kind
    return SettingRow(name, element, default, help, is_engine, is_list)


def _plain_type(annotation: Any) -> Any:
    """The type without `None` and without the additions of `Annotated`."""
    if get_origin(annotation) is Annotated:
        return _plain_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _plain_type(next(a for a in get_args(annotation) if a is not type(None)))
    return annotation


def default_yaml() -> str:
    """The text of `configs/default.yaml`. A file cannot name another file, so `config` is left
    out."""
    rows = [row for row in setting_rows() if row.name != "config"]
    server = [_yaml_item(row, "") for row in rows if not row.is_engine]
    engine = [_yaml_item(row, "  ") for row in rows if row.is_engine]
    return "\n".join([_YAML_HEAD, *server, "engine:\n" + "\n".join(engine)])


def _yaml_item(row: SettingRow, indent: str) -> str:
    prefix = f"{indent}# "
    comment = textwrap.fill(row.help, 98, initial_indent=prefix, subsequent_indent=prefix)
    value = list(row.default) if row.is_list else row.default
    # A flow sequence keeps the value on its name's line; its brackets are removed.
    text = yaml.safe_dump([value], default_flow_style=True, width=1000).strip()[1:-1]
    return f"{comment}\n{indent}{row.name}: {text}\n"


def settings_table() -> str:
    """A Markdown table of all settings."""
    lines = ["| option | variable | default | |", "|---|---|---|---|"]
    for row in setting_rows():
        default = f"`{row.default_text}`" if row.default_text else ""
        text = row.help.replace("|", r"\|")
        lines.append(f"| `{row.option}` | `{row.variable}` | {default} | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write({"yaml": default_yaml, "table": settings_table}[sys.argv[1]]())
