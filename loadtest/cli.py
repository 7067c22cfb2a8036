"""`python -m loadtest`: run a workload, compare servers, time starts, write the benchmark page."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from loadtest.cli_decoding import decoding
from loadtest.cli_hot_loads import hot_loads
from loadtest.cli_images import images
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
from loadtest.cli_run import EXIT_INTERRUPTED, run
from loadtest.cli_session import say, session_of
from loadtest.compare import Comparison, NoiseLimit, time_starts
from loadtest.interrupt import Interrupt
from loadtest.launch import described
from loadtest.machine import provenance
from loadtest.plan import ComparisonPlan, load_plan, parse_overrides
from loadtest.report import COMMAND, comparison_section, render_page, starts_section
from loadtest.results import COMPARISON_FORMAT, STARTS_FORMAT, save_result

app = typer.Typer(
    help="Drive any OpenAI-compatible server over HTTP and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(images)
app.command()(decoding)
app.command()(hot_loads)
errors = Console(stderr=True, highlight=False)

EXIT_OUTDATED = 1

PlanPath = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A YAML file like loadtest/scenarios/peers.yaml.")
]

_PEERS = Path("loadtest/scenarios/peers.yaml")
_RAW = Path("docs/benchmarks/raw")
_PAGE = Path("docs/benchmarks.md")


def main() -> None:
    """Run the app. A user's mistake ends in a one-line message, not in a stack trace."""
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        errors.print("[red]error:[/red]", end=" ")
        errors.print(str(error), markup=False)
        sys.exit(2)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(EXIT_INTERRUPTED)


@app.command()
def compare(
    plan_path: PlanPath = _PEERS,
    only: Only = None,
    variables: Variables = None,
    repeats: Repeats = None,
    concurrency: Annotated[
        list[int] | None,
        typer.Option("--concurrency", "-c", min=1, help="Clients at once. Repeatable."),
    ] = None,
    prompt_words: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Words of a prompt. Repeatable. Default: the plan's."),
    ] = None,
    num_requests: Annotated[
        int | None,
        typer.Option("--num-requests", "-n", min=1, help="Requests of a run. Default: the plan's."),
    ] = None,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Run all servers at once and ask them in turn. For servers that do nothing while "
            "idle, on a machine whose speed changes.",
        ),
    ] = False,
    max_noise: MaxNoise = 0.04,
    max_attempts: MaxAttempts = 4,
    seed: Seed = None,
    output: Output = None,
    log_dir: LogDir = LOGS,
    label: Label = None,
) -> None:
    """Start several servers in turn and measure each at every concurrency.

    Ctrl-C stops the running server and keeps the points that are complete.
    """
    plan = _plan(plan_path, only, variables)
    document: dict[str, Any] = {
        "format": COMPARISON_FORMAT,
        **provenance(plan.label if label is None else label),
    }

    comparison = Comparison(
        plan.having(
            repeats=repeats,
            concurrencies=tuple(concurrency or ()),
            prompt_words=tuple(prompt_words or ()),
            num_requests=num_requests,
            together=together,
        ),
        session_of(document, output, seed=seed, log_dir=log_dir),
        NoiseLimit(max_noise, max_attempts),
    )

    async def work() -> None:
        document["servers"] = [await described(server) for server in plan.servers]
        async with Interrupt() as interrupt:
            await comparison.run(interrupt)

    try:
        asyncio.run(work())
    finally:
        if document.get("runs"):
            say(comparison_section(document))


@app.command()
def starts(
    plan_path: PlanPath = _PEERS,
    only: Only = None,
    variables: Variables = None,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    output: Output = None,
    log_dir: LogDir = LOGS,
    label: Annotated[str, typer.Option()] = "Start-up",
) -> None:
    """Time from launch to the first HTTP answer and to the first completed one-token request."""
    plan = _plan(plan_path, only, variables)
    document = {"format": STARTS_FORMAT, **provenance(label)}

    async def work() -> None:
        document["servers"] = [await described(server) for server in plan.servers]
        async with Interrupt():
            document["starts"] = await time_starts(plan.servers, repeats, log_dir, say)

    asyncio.run(work())
    if output is not None:
        save_result(document, output)
    say(starts_section(document))


@app.command()
def report(
    raw: Annotated[Path, typer.Option(help="Folder of raw results.", exists=True)] = _RAW,
    page: Annotated[Path, typer.Option(help="The page to update.", exists=True)] = _PAGE,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if the page is out of date.")
    ] = False,
) -> None:
    """Write the tables of the benchmark page from the raw results."""
    before = page.read_text()
    after = render_page(before, raw)
    if not check:
        page.write_text(after)
    elif after != before:
        errors.print(f"{page} does not match its raw results: run {COMMAND}")
        raise typer.Exit(EXIT_OUTDATED)


def _plan(path: Path, only: list[str] | None, variables: list[str] | None) -> ComparisonPlan:
    plan = load_plan(path, parse_overrides(variables))
    return plan.only(only) if only else plan
