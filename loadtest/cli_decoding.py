"""`python -m loadtest decoding`: what decoding features cost, compared with plain sampling."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtest.cli_options import LOGS, Label, LogDir, Output, Repeats, Seed, Variables
from loadtest.cli_session import say, session_of
from loadtest.decoding import DecodingComparison
from loadtest.decoding_plan import load_decoding_plan
from loadtest.decoding_report import decoding_section
from loadtest.interrupt import Interrupt
from loadtest.launch import described
from loadtest.machine import provenance
from loadtest.plan import parse_overrides
from loadtest.results import DECODING_FORMAT

_PLAN = Path("loadtest/scenarios/decoding.yaml")


def decoding(
    plan_path: Annotated[
        Path,
        typer.Argument(metavar="PLAN", help="A YAML file like loadtest/scenarios/decoding.yaml"),
    ] = _PLAN,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Measure only this case of the plan. Repeatable."),
    ] = None,
    variables: Variables = None,
    repeats: Repeats = None,
    seed: Seed = None,
    output: Output = None,
    log_dir: LogDir = LOGS,
    label: Label = None,
) -> None:
    """Start the plan's servers together and measure its cases in turn.

    Ctrl-C stops the servers and keeps the runs that are complete.
    """
    plan = load_decoding_plan(plan_path, parse_overrides(variables))
    plan = (plan.only(only) if only else plan).having(repeats=repeats)
    document: dict[str, Any] = {
        "format": DECODING_FORMAT,
        **provenance(plan.label if label is None else label),
    }

    session = session_of(document, output, seed=seed, log_dir=log_dir)
    comparison = DecodingComparison(plan, session)

    async def work() -> None:
        document["servers"] = [await described(server) for server in plan.servers]
        async with Interrupt() as interrupt:
            await comparison.run(interrupt)

    try:
        asyncio.run(work())
    finally:
        if document.get("runs"):
            say(decoding_section(document))
