"""A comparison of image servers as a YAML file: its servers, scenarios and repeats."""

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from loadtest.image_workload import ImageSettings, StepRange
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

_PLAN_KEYS = {"label", "rung", "variables", "repeats", "servers", "scenarios"}

VARIANT = "VARIANT"
"""The environment variable that tells a server's command which variant to run."""


class ScenarioKind(StrEnum):
    IMAGES = "images"
    BEHIND = "behind"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class ImageScenario:
    """A measurement of `servers`; the first one is compared with the others.

    images: `clients` keep one request each in flight until `num_requests` are done.
    behind: one request alone, `num_requests` times; then equally often after `num_long` requests
        of `long_steps` that were sent `delay_s` earlier.
    text: `num_requests` completions by `text_model`, one at a time; then the same beside `clients`
        that keep asking for pictures.

    `warmup` unmeasured pictures come first. `trial_requests` choose between a server's variants.
    """

    name: str
    kind: ScenarioKind
    servers: tuple[str, ...]
    settings: ImageSettings
    clients: int = 1
    num_requests: int = 1
    warmup: int = 8
    trial_requests: int = 4
    num_long: int = 8
    long_steps: int = 50
    delay_s: float = 0.3
    text_model: str = ""
    lead_s: float = 2.0

    def as_trial(self) -> "ImageScenario":
        """The short run that chooses between the variants of a server."""
        return replace(self, num_requests=self.trial_requests)

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind.value,
            "servers": list(self.servers),
            **self.settings.to_json(),
            "num_requests": self.num_requests,
        }
        if self.kind is ScenarioKind.BEHIND:
            keys = ("num_long", "long_steps", "delay_s")
            return fields | {key: getattr(self, key) for key in keys}
        if self.kind is ScenarioKind.TEXT:
            fields |= {"text_model": self.text_model, "lead_s": self.lead_s}
        return fields | {"clients": self.clients}


_COMMON_KEYS = {"name", "kind", "servers", "size", "steps", "guidance", "num_requests", "warmup"}
_KIND_KEYS = {
    ScenarioKind.IMAGES: {"clients", "trial_requests"},
    ScenarioKind.BEHIND: {"num_long", "long_steps", "delay_s"},
    ScenarioKind.TEXT: {"clients", "text_model", "lead_s"},
}
_REQUIRED_KEYS = {"name", "kind", "servers", "size", "steps", "num_requests"}


@dataclass(frozen=True, slots=True)
class ImageServer:
    """A server and its variants (values of `$VARIANT`), of which the fastest is compared.

    With `same_variant_as`, it runs the variant that was chosen for that earlier server.
    """

    command: ServerCommand
    variants: tuple[str, ...] = ("",)
    same_variant_as: str | None = None

    @property
    def name(self) -> str:
        return self.command.name

    def variant(self, variant: str) -> ServerCommand:
        variables = self.command.variables | {VARIANT: variant}
        return replace(self.command, variables=variables)


@dataclass(frozen=True, slots=True)
class ImagePlan:
    servers: tuple[ImageServer, ...]
    scenarios: tuple[ImageScenario, ...]
    repeats: int
    label: str
    rung: str = NATIVE_RUNG
    """The instructions that all servers are restricted to; `NATIVE_RUNG` is no restriction."""

    def scenarios_of(self, server: ImageServer) -> list[ImageScenario]:
        return [scenario for scenario in self.scenarios if server.name in scenario.servers]

    def only(self, servers: list[str], scenarios: list[str]) -> "ImagePlan":
        """A copy with these servers and scenarios (all if empty), as far as they belong together.

        A server whose `same_variant_as` is left out chooses for itself.

        Raises ValueError for a name that the plan does not have, and when nothing is left.
        """
        check_known("server", servers, [server.name for server in self.servers])
        check_known("scenario", scenarios, [scenario.name for scenario in self.scenarios])
        kept = [
            replace(s, servers=tuple(n for n in s.servers if not servers or n in servers))
            for s in self.scenarios
            if not scenarios or s.name in scenarios
        ]
        kept = [scenario for scenario in kept if scenario.servers]
        if not kept:
            raise ValueError("none of these servers is in any of these scenarios")
        wanted = {name for scenario in kept for name in scenario.servers}
        return replace(
            self,
            servers=tuple(
                server
                if server.same_variant_as in wanted
                else replace(server, same_variant_as=None)
                for server in self.servers
                if server.name in wanted
            ),
            scenarios=tuple(kept),
        )

    def quick(self) -> "ImagePlan":
        """A tiny copy that shows that everything works; its numbers mean nothing."""
        few = StepRange(4, 4)
        scenarios = tuple(
            replace(
                scenario,
                settings=replace(scenario.settings, steps=few),
                clients=min(scenario.clients, 2),
                num_requests=2,
                warmup=1,
                trial_requests=1,
                num_long=2,
                long_steps=8,
                delay_s=0.05,
                lead_s=0.2,
            )
            for scenario in self.scenarios
        )
        return replace(self, scenarios=scenarios, repeats=1)


def load_image_plan(path: Path, overrides: dict[str, str] | None = None) -> ImagePlan:
    """Read a plan; variables are those of `loadtest.plan.load_plan`.

    Raises ValueError for unknown or missing keys and names, and for values out of range.
    """
    document = load_yaml(path)
    check_keys("the plan", document, _PLAN_KEYS, {"servers", "scenarios"})
    variables = plan_variables(document, overrides)
    servers: tuple[ImageServer, ...] = ()
    for entry in document["servers"]:
        servers += (_server(entry, variables, servers),)
    scenarios = tuple(_scenario(entry) for entry in document["scenarios"])
    check_names(server.name for server in servers)
    check_names(scenario.name for scenario in scenarios)
    for scenario in scenarios:
        check_known("server", scenario.servers, [server.name for server in servers])
    plan = ImagePlan(
        servers=servers,
        scenarios=scenarios,
        repeats=document.get("repeats", 3),
        label=document.get("label", path.stem),
        rung=expand(document.get("rung", NATIVE_RUNG), variables),
    )
    _check_variants(plan)
    return plan


def _server(entry: Any, variables: dict[str, str], earlier: tuple[ImageServer, ...]) -> ImageServer:
    command = server_command(
        "a server", entry, variables, {"models", "variants", "same_variant_as"}
    )
    model = entry.get("same_variant_as")
    if model is None:
        return ImageServer(command, tuple(entry.get("variants", ("",))))
    check_known("server", [model], [server.name for server in earlier])
    if "variants" in entry:
        raise ValueError(f"{command.name} has variants and those of {model}: keep one of them")
    variants = next(server.variants for server in earlier if server.name == model)
    return ImageServer(command, variants, same_variant_as=model)


def _check_variants(plan: ImagePlan) -> None:
    """Raises ValueError for a server with variants in a scenario that cannot tell the fastest."""
    for server in plan.servers:
        kinds = {scenario.kind for scenario in plan.scenarios_of(server)}
        if len(server.variants) > 1 and kinds - {ScenarioKind.IMAGES}:
            raise ValueError(f"{server.name} has variants: it can be in images scenarios only")


def _scenario(entry: Any) -> ImageScenario:
    if not isinstance(entry, dict) or entry.get("kind") not in set(ScenarioKind):
        raise ValueError(f"a scenario needs a kind: one of {', '.join(ScenarioKind)}")
    kind = ScenarioKind(entry["kind"])
    what = f"the scenario {entry.get('name', '')!r}"
    required = _REQUIRED_KEYS | ({"text_model"} if kind is ScenarioKind.TEXT else set())
    check_keys(what, entry, _COMMON_KEYS | _KIND_KEYS[kind], required)
    settings = ImageSettings(
        size=entry["size"],
        steps=StepRange.parse(str(entry["steps"])),
        guidance=float(entry.get("guidance", 4.0)),
    )
    others = {
        key: value
        for key, value in entry.items()
        if key not in ("name", "kind", "servers", "size", "steps", "guidance")
    }
    scenario = ImageScenario(
        name=entry["name"],
        kind=kind,
        servers=tuple(entry["servers"]),
        settings=settings,
        **others,
    )
    counts = (settings.size, scenario.clients, scenario.num_requests, scenario.num_long)
    if min(counts) < 1 or scenario.warmup < 0 or scenario.trial_requests < 1:
        raise ValueError(f"{what}: sizes and counts must be at least 1")
    return scenario
