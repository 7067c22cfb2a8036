"""`python -m loadtest hot-loads`: adapters loaded while texts stream."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtest.cli_options import LOGS, Label, LogDir, Output, Repeats, Seed, Variables
from loadtest.cli_session import say
from loadtest.hot_load_report import hot_loads_section
from loadtest.hot_loads import load_hot_load_plan, measure_hot_loads
from loadtest.interrupt import Interrupt
from loadtest.launch import described
from loadtest.machine import provenance
from loadtest.plan import parse_overrides
from loadtest.results import HOT_LOADS_FORMAT, save_result
from loadtest.scenario import random_seed

_PLAN = Path("loadtest/scenarios/hot-loads.yaml")


def hot_loads(
    plan_path: Annotated[
        Path,
        typer.Argument(metavar="PLAN", help="A YAML file like loadtest/scenarios/hot-loads.yaml."),
    ] = _PLAN,
    variables: Variables = None,
    repeats: Repeats = None,
    seed: Seed = None,
    output: Output = None,
    log_dir: LogDir = LOGS,
    label: Label = None,
) -> None:
    """Load adapters while texts stream: how long it takes, and what the streams notice."""
    plan = load_hot_load_plan(plan_path, parse_overrides(variables))
    seed = random_seed() if seed is None else seed
    document: dict[str, Any] = {
        "format": HOT_LOADS_FORMAT,
        **provenance(plan.label if label is None else label),
        "rung": plan.rung,
        "repeats": repeats or plan.repeats,
        "adapters": list(plan.adapters),
        "pause_s": plan.pause_s,
        "seed": seed,
    }

    async def work() -> None:
        document["servers"] = [await described(plan.server)]
        async with Interrupt() as interrupt:
            document["runs"] = await measure_hot_loads(
                plan.having(repeats=repeats),
                seed=seed,
                log_dir=log_dir,
                interrupt=interrupt,
                say=say,
            )

    asyncio.run(work())
    if output is not None:
        save_result(document, output)
    say(hot_loads_section(document))
