"""`python -m loadtest images`: compare image servers, and text with and without images."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtest.cli_options import (
    LOGS,
    Label,
    LogDir,
    MaxAttempts,
    MaxNoise,
    Only,
    Output,
    Repeats,
    Seed,
    Variables,
)
from loadtest.cli_session import say, session_of
from loadtest.compare import NoiseLimit
from loadtest.image_compare import ImageComparison
from loadtest.image_plan import load_image_plan
from loadtest.image_report import images_section
from loadtest.interrupt import Interrupt
from loadtest.launch import described
from loadtest.machine import provenance
from loadtest.plan import parse_overrides
from loadtest.results import IMAGES_FORMAT

_PLAN = Path("loadtest/scenarios/images.yaml")


def images(
    plan_path: Annotated[
        Path, typer.Argument(metavar="PLAN", help="A YAML file like loadtest/scenarios/images.yaml")
    ] = _PLAN,
    scenario: Annotated[
        list[str] | None,
        typer.Option("--scenario", "-s", help="Run only this scenario of the plan. Repeatable."),
    ] = None,
    only: Only = None,
    variables: Variables = None,
    repeats: Repeats = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny runs that only show that everything works.")
    ] = False,
    max_noise: MaxNoise = 0.04,
    max_attempts: MaxAttempts = 4,
    seed: Seed = None,
    output: Output = None,
    log_dir: LogDir = LOGS,
    label: Label = None,
) -> None:
    """Start several image servers in turn and measure each in its scenarios.

    Ctrl-C stops the running server and keeps the servers that are complete.
    """
    plan = load_image_plan(plan_path, parse_overrides(variables)).only(only or [], scenario or [])
    if quick:
        plan, max_attempts = plan.quick(), 1
    plan = plan.having(repeats=repeats)
    document: dict[str, Any] = {
        "format": IMAGES_FORMAT,
        **provenance(plan.label if label is None else label),
        "quick": quick,
    }

    comparison = ImageComparison(
        plan,
        session_of(document, output, seed=seed, log_dir=log_dir),
        NoiseLimit(max_noise, max_attempts),
    )

    async def work() -> None:
        document["servers"] = [
            await described(server.command) | {"variants": list(server.variants)}
            for server in plan.servers
        ]
        async with Interrupt() as interrupt:
            await comparison.run(interrupt)

    try:
        asyncio.run(work())
    finally:
        if document.get("runs"):
            say(images_section(document))
