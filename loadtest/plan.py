"""A comparison as a YAML file: its servers, concurrencies and repeats."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loadtest.launch import ServerCommand
from loadtest.plan_file import load_yaml
from loadtest.workload import PEERS_NUM_WORDS, PEERS_OUTPUT_TOKENS

_PLAN_KEYS = {
    *("label", "rung", "variables", "concurrencies", "repeats", "warmup", "servers"),
    *("prompt_words", "output_tokens", "num_requests"),
}
_SERVER_KEYS = {"name", "command", "url", "model"}
_VARIABLE = re.compile(r"\$\{(\w+)\}")


NATIVE_RUNG = "native"


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """What to measure. The first server of a group is compared with the others of the group.

    `rung` names the instructions that all servers are restricted to, if not `NATIVE_RUNG`.
    `prompt_words` are the lengths of prompts, each measured at every concurrency.
    `num_requests` are the requests of a run by concurrency, if not the usual number.
    `together`: all servers run at once and are asked in turn.
    """

    servers: tuple[ServerCommand, ...]
    concurrencies: tuple[int, ...]
    repeats: int
    warmup: int
    label: str
    rung: str = NATIVE_RUNG
    prompt_words: tuple[int, ...] = (PEERS_NUM_WORDS,)
    output_tokens: int = PEERS_OUTPUT_TOKENS
    num_requests: dict[int, int] = field(default_factory=dict)
    together: bool = False

    def only(self, names: list[str]) -> "ComparisonPlan":
        """A copy with some of the servers. Raises ValueError for a name not in the plan."""
        return replace(self, servers=some_servers(self.servers, names))

    def having(
        self,
        *,
        repeats: int | None = None,
        concurrencies: tuple[int, ...] = (),
        prompt_words: tuple[int, ...] = (),
        num_requests: int | None = None,
        together: bool = False,
    ) -> "ComparisonPlan":
        """A copy with the given values in place of the file's."""
        concurrencies = concurrencies or self.concurrencies
        return replace(
            self,
            repeats=repeats or self.repeats,
            concurrencies=concurrencies,
            prompt_words=prompt_words or self.prompt_words,
            num_requests=dict.fromkeys(concurrencies, num_requests)
            if num_requests
            else self.num_requests,
            together=together or self.together,
        )


def parse_overrides(texts: list[str] | None) -> dict[str, str]:
    """The variables of `--set NAME=VALUE`. Raises ValueError."""
    pairs = [text.partition("=") for text in texts or ()]
    if wrong := [name for name, equals, _ in pairs if not (name and equals)]:
        raise ValueError(f"--set {wrong[0]}: write NAME=VALUE")
    return {name: value for name, _, value in pairs}


def load_plan(path: Path, overrides: dict[str, str] | None = None) -> ComparisonPlan:
    """Read a plan. `${NAME}` in a URL, model, label, rung or variable is replaced.

    A variable's value comes from `overrides`, else from the environment, else from the file.
    Commands are left as written, because the shell that runs them has the variables.

    Raises ValueError for unknown or missing keys and unknown variables.
    """
    document = load_yaml(path)
    check_keys("the plan", document, _PLAN_KEYS, {"servers"})
    variables = plan_variables(document, overrides)
    optional = {"groups", "models", "extra_body"}
    servers = tuple(
        server_command("a server", entry, variables, optional) for entry in document["servers"]
    )
    check_names(server.name for server in servers)
    return ComparisonPlan(
        servers=servers,
        concurrencies=tuple(document.get("concurrencies", (1, 16, 32))),
        repeats=document.get("repeats", 3),
        warmup=document.get("warmup", 4),
        label=expand(document.get("label", path.stem), variables),
        rung=expand(document.get("rung", NATIVE_RUNG), variables),
        prompt_words=tuple(document.get("prompt_words", (PEERS_NUM_WORDS,))),
        output_tokens=int(
            expand(str(document.get("output_tokens", PEERS_OUTPUT_TOKENS)), variables)
        ),
        num_requests=document.get("num_requests", {}),
    )


def plan_variables(document: dict[str, Any], overrides: dict[str, str] | None) -> dict[str, str]:
    """The variables of a plan with their values, see `load_plan`. Raises ValueError."""
    variables: dict[str, str] = {}
    for name, default in (document.get("variables") or {}).items():
        value = (overrides or {}).get(name, os.environ.get(name, str(default)))
        variables[name] = os.path.expanduser(expand(value, variables))
    return variables


def server_command(
    what: str, entry: Any, variables: dict[str, str], optional: Iterable[str] = ()
) -> ServerCommand:
    """The server that a plan's entry describes.

    Raises ValueError for missing keys, and for unknown ones that are not `optional`.
    """
    check_keys(what, entry, {*_SERVER_KEYS, "version_command", *optional}, _SERVER_KEYS)
    return ServerCommand(
        name=entry["name"],
        command=entry["command"].strip(),
        url=expand(entry["url"], variables),
        model=expand(entry["model"], variables),
        version_command=entry.get("version_command"),
        groups=tuple(entry.get("groups", ())),
        models=tuple(entry.get("models", ())),
        extra_body=entry.get("extra_body", {}),
        variables=variables,
    )


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError if two names are the same."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two in the plan have the same name: {repeated[0]!r}")


def some_servers(servers: tuple[ServerCommand, ...], names: list[str]) -> tuple[ServerCommand, ...]:
    """Those with these names. Raises ValueError for a name that none has."""
    check_known("server", names, [server.name for server in servers])
    return tuple(server for server in servers if server.name in names)


def check_known(what: str, names: Iterable[str], known: list[str]) -> None:
    """Raises ValueError for a name that is not among those known."""
    for name in names:
        if name not in known:
            raise ValueError(f"no {what} is called {name!r}; there are: {', '.join(known)}")


def check_keys(what: str, entry: Any, known: set[str], required: set[str]) -> None:
    """Raises ValueError unless `entry` is a mapping with these keys."""
    if not isinstance(entry, dict):
        raise ValueError(f"{what} must be a mapping")
    if unknown := sorted(set(entry) - known):
        raise ValueError(f"{what} has unknown keys: {', '.join(unknown)}")
    if missing := sorted(required - set(entry)):
        raise ValueError(f"{what} lacks: {', '.join(missing)}")


def expand(text: str, variables: dict[str, str]) -> str:
    """`text` with the values of its `${NAME}`. Raises ValueError for an unknown one."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ValueError(f"${{{match[1]}}} is not among the plan's variables")
        return variables[match[1]]

    return _VARIABLE.sub(value, text)
