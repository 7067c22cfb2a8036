"""A comparison as a YAML file: which servers, at which concurrencies, how often."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from loadtest.launch import ServerCommand

_PLAN_KEYS = {"label", "variables", "concurrencies", "repeats", "warmup", "servers"}
_SERVER_KEYS = {"name", "command", "url", "model", "version_command"}
_REQUIRED_SERVER_KEYS = _SERVER_KEYS - {"version_command"}
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """The first server is the one that the others are compared with."""

    servers: tuple[ServerCommand, ...]
    concurrencies: tuple[int, ...]
    repeats: int
    warmup: int
    label: str
    variables: dict[str, str]

    def only(self, names: list[str]) -> "ComparisonPlan":
        """With some of the servers. Raises ValueError for a name that the plan does not have."""
        known = [server.name for server in self.servers]
        for name in names:
            if name not in known:
                raise ValueError(f"no server is called {name!r}; there are: {', '.join(known)}")
        return replace(self, servers=tuple(s for s in self.servers if s.name in names))

    def having(
        self, *, repeats: int | None = None, concurrencies: tuple[int, ...] = ()
    ) -> "ComparisonPlan":
        """With what is given here in place of the file's."""
        return replace(
            self,
            repeats=repeats or self.repeats,
            concurrencies=concurrencies or self.concurrencies,
        )


def load_plan(path: Path, overrides: dict[str, str] | None = None) -> ComparisonPlan:
    """Read a plan. `${NAME}` in a URL, a model or a variable means a variable of the plan.

    A variable's value is that of `overrides`, else of the environment, else of the file. Commands
    are left as written: the shell that runs them has the variables in its environment.

    Raises ValueError for unknown or missing keys and unknown variables.
    """
    document = yaml.safe_load(path.read_text())
    _check_keys("the plan", document, _PLAN_KEYS, {"servers"})
    variables: dict[str, str] = {}
    for name, default in (document.get("variables") or {}).items():
        value = (overrides or {}).get(name, os.environ.get(name, str(default)))
        variables[name] = os.path.expanduser(_expand(value, variables))
    servers = tuple(_server(entry, variables) for entry in document["servers"])
    if len({server.name for server in servers}) < len(servers):
        raise ValueError("two servers of the plan have the same name")
    return ComparisonPlan(
        servers=servers,
        concurrencies=tuple(document.get("concurrencies", (1, 16, 32))),
        repeats=document.get("repeats", 3),
        warmup=document.get("warmup", 4),
        label=document.get("label", path.stem),
        variables=variables,
    )


def _server(entry: Any, variables: dict[str, str]) -> ServerCommand:
    _check_keys("a server", entry, _SERVER_KEYS, _REQUIRED_SERVER_KEYS)
    return ServerCommand(
        name=entry["name"],
        command=entry["command"].strip(),
        url=_expand(entry["url"], variables),
        model=_expand(entry["model"], variables),
        version_command=entry.get("version_command"),
        variables=variables,
    )


def _check_keys(what: str, entry: Any, known: set[str], required: set[str]) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{what} must be a mapping")
    if unknown := sorted(set(entry) - known):
        raise ValueError(f"{what} has unknown keys: {', '.join(unknown)}")
    if missing := sorted(required - set(entry)):
        raise ValueError(f"{what} lacks: {', '.join(missing)}")


def _expand(text: str, variables: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ValueError(f"${{{match[1]}}} is not among the plan's variables")
        return variables[match[1]]

    return _VARIABLE.sub(value, text)
