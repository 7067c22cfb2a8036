"""A comparison of decoding features as a YAML file: its servers and cases."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from loadtest.launch import ServerCommand
from loadtest.plan import (
    NATIVE_RUNG,
    check_keys,
    check_known,
    check_names,
    expand,
    plan_variables,
    server_command,
)
from loadtest.plan_file import load_yaml
from loadtest.prompts import copy_prompt, story_prompt

_PLAN_KEYS = {
    *("label", "rung", "variables", "servers", "cases"),
    *("num_requests", "output_tokens", "warmup_tokens", "repeats"),
}
_CASE_KEYS = {"name", "server", "task", "body", "against"}

NUM_WORDS = 20
"""Words of a story's prompt: few, so that prompts take little of the time."""

TASKS: dict[str, Callable[[int], str]] = {
    "story": partial(story_prompt, num_words=NUM_WORDS),
    "copy": copy_prompt,
    "again": partial(story_prompt, num_words=NUM_WORDS),
}
"""Makes a prompt from a seed, by task. The prompts of `again` are the same in all repeats."""


@dataclass(frozen=True, slots=True)
class DecodingCase:
    """Requests of one kind, sent to one of the servers.

    `body` is merged into every request. Its time is divided by that of the case `against`, if there
    is one.
    """

    name: str
    server: str
    task: str = "story"
    body: dict[str, Any] = field(default_factory=dict)
    against: str | None = None


@dataclass(frozen=True, slots=True)
class DecodingPlan:
    """What to measure.

    `num_requests` are the requests of a run, by the number of clients. Each request of the
    unmeasured first round writes `warmup_tokens` tokens."""

    servers: tuple[ServerCommand, ...]
    cases: tuple[DecodingCase, ...]
    num_requests: dict[int, int]
    output_tokens: int
    warmup_tokens: int
    repeats: int
    label: str
    rung: str = NATIVE_RUNG

    def only(self, names: list[str]) -> "DecodingPlan":
        """A copy with some of the cases, those they are compared with, and the servers of both.

        Raises ValueError for a name that the plan does not have.
        """
        check_known("case", names, [case.name for case in self.cases])
        wanted = {*names, *(case.against for case in self.cases if case.name in names)}
        cases = tuple(case for case in self.cases if case.name in wanted)
        asked = {case.server for case in cases}
        return replace(
            self, cases=cases, servers=tuple(one for one in self.servers if one.name in asked)
        )


def load_decoding_plan(path: Path, overrides: dict[str, str] | None = None) -> DecodingPlan:
    """Read a plan; variables are those of `loadtest.plan.load_plan`.

    Raises ValueError for unknown or missing keys, variables, servers, cases and tasks.
    """
    document = load_yaml(path)
    check_keys("the plan", document, _PLAN_KEYS, {"servers", "cases"})
    variables = plan_variables(document, overrides)
    servers = tuple(server_command("a server", entry, variables) for entry in document["servers"])
    for entry in document["cases"]:
        check_keys("a case", entry, _CASE_KEYS, {"name"})
    first = servers[0].name
    cases = tuple(DecodingCase(**{"server": first, **entry}) for entry in document["cases"])
    check_names(server.name for server in servers)
    check_names(case.name for case in cases)
    check_known("server", [case.server for case in cases], [server.name for server in servers])
    check_known("task", [case.task for case in cases], list(TASKS))
    others = [case.against for case in cases if case.against is not None]
    check_known("case", others, [case.name for case in cases])
    return DecodingPlan(
        servers=servers,
        cases=cases,
        num_requests=document.get("num_requests", {1: 2, 16: 16}),
        output_tokens=document.get("output_tokens", 48),
        warmup_tokens=document.get("warmup_tokens", 16),
        repeats=document.get("repeats", 4),
        label=expand(document.get("label", path.stem), variables),
        rung=expand(document.get("rung", NATIVE_RUNG), variables),
    )
