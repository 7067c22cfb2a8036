"""Compares image servers on one machine: tries their variants, then measures all in turn.

As for text (`compare.py`), one server runs at a time, the order is rotated from repeat to repeat,
and all servers get the same prompts, seeds and steps in the same repeat.
"""

import random
from typing import Any

from loadtest.compare import NoiseLimit
from loadtest.image_measure import Running, image_probe, measure_scenario, worst_cpu
from loadtest.image_plan import ImagePlan, ImageScenario, ImageServer, ScenarioKind
from loadtest.image_table import phase_lines
from loadtest.interrupt import Interrupt
from loadtest.launch import Probe, launched, text_probe
from loadtest.session import Session


class ImageComparison:
    """Runs a plan. `document` always holds what has been measured so far."""

    def __init__(
        self,
        plan: ImagePlan,
        session: Session,
        noise: NoiseLimit,
    ) -> None:
        self._plan = plan
        self._session = session
        self._noise = noise
        self._chosen: dict[tuple[str, str], str] = {}
        self.document: dict[str, Any] = {
            "rung": plan.rung,
            "scenarios": [scenario.to_json() for scenario in plan.scenarios],
            "repeats": plan.repeats,
            "seed": session.seed,
            "max_others": noise.max_others,
            "partial": True,
            "trials": [],
            "starts": [],
            "discarded": [],
            "runs": [],
        }

    async def run(self, interrupt: Interrupt) -> None:
        """Measure everything, saving after every server; `partial` stays true if cut short."""
        servers = self._plan.servers
        with self._session.measuring(self.document):
            for server in servers:
                await self._choose(server, interrupt)
            for repeat in range(self._plan.repeats):
                shift = repeat % len(servers)
                for server in servers[shift:] + servers[:shift]:
                    self._session.say(f"repeat {repeat + 1} of {self._plan.repeats}: {server.name}")
                    await self._visit(server, repeat, interrupt)
                    self._session.save(self.document)

    async def _choose(self, server: ImageServer, interrupt: Interrupt) -> None:
        """Choose the fastest variant for each scenario by a short run of every variant."""
        scenarios = self._plan.scenarios_of(server)
        for scenario in scenarios:
            like = (server.same_variant_as or "", scenario.name)
            self._chosen[server.name, scenario.name] = self._chosen.get(like, server.variants[0])
        if len(server.variants) == 1 or server.same_variant_as is not None:
            return
        rates: dict[str, dict[str, float]] = {scenario.name: {} for scenario in scenarios}
        for variant in server.variants:
            self._session.say(f"trying {server.name} {variant}")
            trials = [scenario.as_trial() for scenario in scenarios]
            for scenario, run in await self._measure(server, variant, trials, "trial", interrupt):
                where = {"server": server.name, "variant": variant, "scenario": scenario.name}
                summary = run["phases"]["images"]["summary"]
                self.document["trials"].append(where | run)
                rates[scenario.name][variant] = summary["images_s"]
        for name, rate_of in rates.items():
            self._chosen[server.name, name] = max(rate_of, key=rate_of.__getitem__)

    async def _visit(self, server: ImageServer, repeat: int, interrupt: Interrupt) -> None:
        """Run all scenarios of a server, with one launch for those with the same variant."""
        for variant in server.variants:
            scenarios = [
                scenario
                for scenario in self._plan.scenarios_of(server)
                if self._chosen[server.name, scenario.name] == variant
            ]
            if not scenarios:
                continue
            found = await self._measure(server, variant, scenarios, str(repeat), interrupt)
            for scenario, run in found:
                where = {"server": server.name, "variant": variant, "scenario": scenario.name}
                self.document["runs"].append(where | {"repeat": repeat} | run)

    async def _measure(
        self,
        server: ImageServer,
        variant: str,
        scenarios: list[ImageScenario],
        round_name: str,
        interrupt: Interrupt,
    ) -> list[tuple[ImageScenario, dict[str, Any]]]:
        command = server.variant(variant)
        start = {"server": server.name, "variant": variant, "round": round_name}
        probes: list[Probe] = [image_probe(command, scenarios[0].settings)]
        models = {s.text_model for s in scenarios if s.kind is ScenarioKind.TEXT}
        probes += [text_probe(command, model) for model in sorted(models)]
        found = []
        log = command.log_path(self._session.log_dir)
        async with launched(command, log, probes=probes) as launch:
            self._session.say(f"  serving after {launch.ready_s:.1f} s")
            running = Running(command, launch.pid, interrupt)
            for scenario in scenarios:
                found.append((scenario, await self._quiet_run(running, scenario, round_name)))
        self.document["starts"].append(start | launch.to_json())
        return found

    async def _quiet_run(
        self, running: Running, scenario: ImageScenario, round_name: str
    ) -> dict[str, Any]:
        """Measure one scenario, repeating runs that were too noisy."""
        for attempt in range(self._noise.max_attempts):
            seed = self._run_seed(scenario, round_name, attempt)
            run = await measure_scenario(running, scenario, seed)
            cpu = worst_cpu(run)
            quiet = cpu["others"] <= self._noise.max_others
            mark = "" if quiet else "  NOISY"
            for line in phase_lines(run):
                self._session.say(f"  {scenario.name}: {line}{mark}")
            if quiet or attempt + 1 == self._noise.max_attempts:
                break
            where = {"server": running.server.name, "scenario": scenario.name}
            self.document["discarded"].append(where | {"cpu": cpu})
        return {"quiet": quiet} | run

    def _run_seed(self, scenario: ImageScenario, round_name: str, attempt: int) -> int:
        """A seed that all servers share and no other run of the comparison has."""
        key = f"{self._session.seed} {scenario.name} {round_name} {attempt}"
        return random.Random(key).randrange(2**40)
