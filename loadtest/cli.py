"""`python -m loadtest`: run a workload, compare servers, write the benchmark page."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from loadtest.cli_run import EXIT_INTERRUPTED, run
from loadtest.compare import Comparison, NoiseLimit
from loadtest.decoding import DecodingComparison
from loadtest.decoding_plan import load_decoding_plan
from loadtest.decoding_report import decoding_section
from loadtest.hot_load_report import hot_loads_section
from loadtest.hot_loads import load_hot_load_plan, measure_hot_loads
from loadtest.image_compare import ImageComparison
from loadtest.image_plan import load_image_plan
from loadtest.image_report import images_section
from loadtest.interrupt import Interrupt
from loadtest.launch import ServerCommand, described
from loadtest.machine import provenance
from loadtest.plan import load_plan, parse_overrides
from loadtest.report import COMMAND, comparison_section, render_page
from loadtest.results import (
    COMPARISON_FORMAT,
    DECODING_FORMAT,
    HOT_LOADS_FORMAT,
    IMAGES_FORMAT,
    SWAPS_FORMAT,
    keeping,
)
from loadtest.scenario import random_seed
from loadtest.session import Session
from loadtest.swap_report import swaps_section
from loadtest.swaps import load_swap_plan, measure_swaps

app = typer.Typer(
    help="Drive any OpenAI-compatible server over HTTP and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
errors = Console(stderr=True, highlight=False)
_console = Console(highlight=False)

EXIT_OUTDATED = 1

_SCENARIOS = Path("loadtest/scenarios")
_RAW = Path("docs/benchmarks/raw")
_PAGE = Path("docs/benchmarks.md")
_LOGS = Path("build/loadtest")

PlanPath = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A YAML file; the default one shows the form.")
]
Only = Annotated[
    list[str] | None, typer.Option(help="Use only this server of the plan. Repeatable.")
]
Variables = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set a variable of the plan."),
]
Repeats = Annotated[
    int | None, typer.Option(min=1, help="Repeats of every run. Default: the plan's.")
]
MaxNoise = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the CPU that other processes may take.")
]
MaxAttempts = Annotated[int, typer.Option(min=1, help="Most runs per point.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Default: random.")]
Output = Annotated[Path | None, typer.Option(help="Write the raw results (JSON) here.")]
LogDir = Annotated[Path, typer.Option(help="Folder for the servers' own output.")]
Label = Annotated[str | None, typer.Option(help="Title of the result. Default: the plan's.")]


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
    plan_path: PlanPath = _SCENARIOS / "peers.yaml",
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
    log_dir: LogDir = _LOGS,
    label: Label = None,
) -> None:
    """Start several servers in turn and measure each at every concurrency.

    Ctrl-C stops the running server and keeps the points that are complete.
    """
    plan = load_plan(plan_path, parse_overrides(variables))
    plan = (plan.only(only) if only else plan).having(
        repeats=repeats,
        concurrencies=tuple(concurrency or ()),
        prompt_words=tuple(prompt_words or ()),
        num_requests=num_requests,
        together=together,
    )
    document = _document(COMPARISON_FORMAT, plan.label, label)
    session = _session(document, output, seed, log_dir)
    comparison = Comparison(plan, session, NoiseLimit(max_noise, max_attempts))
    _measure(document, plan.servers, comparison.run, comparison_section)


@app.command()
def images(
    plan_path: PlanPath = _SCENARIOS / "images.yaml",
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
    log_dir: LogDir = _LOGS,
    label: Label = None,
) -> None:
    """Start several image servers in turn and measure each in its scenarios.

    Ctrl-C stops the running server and keeps the servers that are complete.
    """
    plan = load_image_plan(plan_path, parse_overrides(variables)).only(only or [], scenario or [])
    if quick:
        plan, max_attempts = plan.quick(), 1
    plan = replace(plan, repeats=repeats or plan.repeats)
    document = _document(IMAGES_FORMAT, plan.label, label) | {"quick": quick}
    session = _session(document, output, seed, log_dir)
    comparison = ImageComparison(plan, session, NoiseLimit(max_noise, max_attempts))

    async def measure(interrupt: Interrupt) -> None:
        for server, entry in zip(plan.servers, document["servers"], strict=True):
            entry["variants"] = list(server.variants)
        await comparison.run(interrupt)

    _measure(document, [server.command for server in plan.servers], measure, images_section)


@app.command()
def decoding(
    plan_path: PlanPath = _SCENARIOS / "decoding.yaml",
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Measure only this case of the plan. Repeatable."),
    ] = None,
    variables: Variables = None,
    repeats: Repeats = None,
    seed: Seed = None,
    output: Output = None,
    log_dir: LogDir = _LOGS,
    label: Label = None,
) -> None:
    """Start the plan's servers together and measure its cases in turn.

    Ctrl-C stops the servers and keeps the runs that are complete.
    """
    plan = load_decoding_plan(plan_path, parse_overrides(variables))
    plan = plan.only(only) if only else plan
    plan = replace(plan, repeats=repeats or plan.repeats)
    document = _document(DECODING_FORMAT, plan.label, label)
    comparison = DecodingComparison(plan, _session(document, output, seed, log_dir))
    _measure(document, plan.servers, comparison.run, decoding_section)


@app.command()
def hot_loads(
    plan_path: PlanPath = _SCENARIOS / "hot-loads.yaml",
    variables: Variables = None,
    repeats: Repeats = None,
    seed: Seed = None,
    output: Output = None,
    log_dir: LogDir = _LOGS,
    label: Label = None,
) -> None:
    """Load adapters while texts stream: how long it takes, and what the streams notice."""
    plan = load_hot_load_plan(plan_path, parse_overrides(variables))
    plan = replace(plan, repeats=repeats or plan.repeats)
    document = _document(HOT_LOADS_FORMAT, plan.label, label)
    session = _session(document, output, seed, log_dir)
    document |= {
        "rung": plan.rung,
        "repeats": plan.repeats,
        "adapters": list(plan.adapters),
        "pause_s": plan.pause_s,
        "seed": session.seed,
    }

    async def measure(interrupt: Interrupt) -> None:
        runs = await measure_hot_loads(plan, session, interrupt)
        session.save({"runs": runs})

    _measure(document, [plan.server], measure, hot_loads_section)


@app.command()
def swaps(
    plan_path: PlanPath = _SCENARIOS / "swaps.yaml",
    only: Only = None,
    variables: Variables = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Length of a run. Default: the plan's.")
    ] = None,
    seed: Seed = None,
    output: Output = None,
    log_dir: LogDir = _LOGS,
    label: Label = None,
) -> None:
    """Start servers in turn and ask each at random for more models than fit into its memory."""
    plan = load_swap_plan(plan_path, parse_overrides(variables))
    plan = plan.only(only) if only else plan
    plan = replace(plan, seconds=plan.seconds if seconds is None else seconds)
    document = _document(SWAPS_FORMAT, plan.label, label)
    session = _session(document, output, seed, log_dir)
    document |= {
        "models": list(plan.models),
        "users": plan.users,
        "seconds": plan.seconds,
        "budget_mib": plan.budget_mib,
        "seed": session.seed,
    }

    async def measure(interrupt: Interrupt) -> None:
        await measure_swaps(plan, session, interrupt)

    _measure(document, plan.servers, measure, swaps_section)


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


def _document(form: str, title: str, label: str | None) -> dict[str, Any]:
    return {"format": form, **provenance(title if label is None else label)}


def _session(
    document: dict[str, Any], output: Path | None, seed: int | None, log_dir: Path
) -> Session:
    """A session that fills `document`, saves it as `output`, if given, and prints its progress."""
    seed = random_seed() if seed is None else seed
    return Session(seed=seed, log_dir=log_dir, say=_say, save=keeping(document, output))


def _measure(
    document: dict[str, Any],
    servers: Sequence[ServerCommand],
    run: Callable[[Interrupt], Awaitable[None]],
    section: Callable[[dict[str, Any]], str],
) -> None:
    """Describe the servers in `document`, measure until the end or Ctrl-C, and print the tables."""

    async def work() -> None:
        document["servers"] = [await described(server) for server in servers]
        async with Interrupt() as interrupt:
            await run(interrupt)

    try:
        asyncio.run(work())
    finally:
        if document.get("runs"):
            _say(section(document))


def _say(line: str) -> None:
    """Print a line without markup."""
    _console.print(line, markup=False, soft_wrap=True)
