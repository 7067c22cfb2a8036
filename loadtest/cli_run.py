"""`python -m loadtest run`: one workload, one server."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.client import CompletionClient, Target
from loadtest.drive import warm_up
from loadtest.interrupt import Interrupt
from loadtest.machine import provenance
from loadtest.measure import measure
from loadtest.metrics import Slo
from loadtest.plot import plot_run
from loadtest.record import RequestRecord
from loadtest.results import RUN_FORMAT, save_result
from loadtest.scenario import Scenario, ScenarioOptions, create_workload, random_seed
from loadtest.table import run_table
from loadtest.workload import TokenRange, TraceScale

console = Console()
errors = Console(stderr=True)

EXIT_FAILED_REQUESTS = 1
EXIT_INTERRUPTED = 130

_PROMPT_TOKENS = TokenRange(128, 128)
_OUTPUT_TOKENS = TokenRange(64, 64)

T = TypeVar("T")


class Endpoint(StrEnum):
    COMPLETIONS = "completions"
    CHAT = "chat"


def _parsed(parse: Callable[[str], T]) -> Callable[[Any], T]:
    """A typer parser that turns ValueError into a usage error that names the option."""

    def parser(text: Any) -> T:
        if not isinstance(text, str):
            return text  # type: ignore[no-any-return]  # a default, parsed already
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parser


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def run(
    model: Annotated[str, typer.Option(help="Model id, as the server lists it.")],
    url: Annotated[str, typer.Option(help="Base URL of the API.")] = "http://127.0.0.1:8000/v1",
    scenario: Annotated[
        Scenario,
        typer.Option(
            help="peers: the workload engines are compared on (100 random words in, 64 tokens "
            "out). closed: N clients. poisson: random arrivals. trace: replay of a recorded file."
        ),
    ] = Scenario.PEERS,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1)] = 1,
    num_requests: Annotated[
        int | None, typer.Option("--num-requests", "-n", min=1, help="Default: by scenario.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.001, help="poisson: requests per second.")] = 1.0,
    prompt_tokens: Annotated[
        TokenRange,
        typer.Option(
            parser=_parsed(TokenRange.parse), metavar="N|LOW:HIGH", help="closed, poisson"
        ),
    ] = _PROMPT_TOKENS,
    output_tokens: Annotated[
        TokenRange,
        typer.Option(
            parser=_parsed(TokenRange.parse), metavar="N|LOW:HIGH", help="closed, poisson"
        ),
    ] = _OUTPUT_TOKENS,
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV: TIMESTAMP,ContextTokens,GeneratedTokens.", exists=True),
    ] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="trace: 2 replays twice as fast.")] = 1.0,
    length_scale: Annotated[
        float, typer.Option(min=0.001, help="trace: multiplies prompt and output lengths.")
    ] = 1.0,
    max_context: Annotated[
        int, typer.Option(min=2, help="trace: longer requests are cut to this many tokens.")
    ] = 2048,
    endpoint: Annotated[Endpoint, typer.Option()] = Endpoint.COMPLETIONS,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Default: random, so every prompt is new.")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Unmeasured requests first.")] = 4,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds per request.")] = 600.0,
    keep_alive: Annotated[
        bool,
        typer.Option("--keep-alive/--new-connections", help="Reuse connections between requests."),
    ] = False,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos/--stop-at-eos", help="Generate up to max_tokens.")
    ] = True,
    extra_body: Annotated[
        dict[str, Any] | None,
        typer.Option(parser=_parsed(_json_object), metavar="JSON", help="Added to every request."),
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="LOADTEST_API_KEY")] = None,
    slo: Annotated[
        Slo | None,
        typer.Option(
            parser=_parsed(Slo.parse),
            metavar="ttft=2000,itl=100",
            help="Limits in ms for goodput: ttft, itl (99 % of a request's gaps), tpot, e2e.",
        ),
    ] = None,
    pid: Annotated[
        list[int] | None,
        typer.Option(help="Root of a server process tree, for memory and CPU. Repeatable."),
    ] = None,
    label: Annotated[str, typer.Option(help="A name for the results.")] = "",
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write all results here.")
    ] = None,
    plot_path: Annotated[Path | None, typer.Option("--plot", help="Write a PNG here.")] = None,
) -> None:
    """Send one workload to one server; print a table, write JSON and a plot.

    Ctrl-C ends the run and reports what there is. Exit status 1: some requests failed.
    """
    target = Target(
        url=url,
        model=model,
        endpoint=endpoint.value,
        api_key=api_key,
        timeout_s=timeout,
        keep_alive=keep_alive,
        temperature=temperature,
        ignore_eos=ignore_eos,
        extra_body=extra_body or {},
    )
    options = ScenarioOptions(
        scenario=scenario,
        seed=random_seed() if seed is None else seed,
        concurrency=concurrency,
        num_requests=num_requests,
        rate=rate,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        trace=trace,
        scale=TraceScale(speed, length_scale, max_context),
    )
    document = {"format": RUN_FORMAT, **provenance(label), "model": model}
    document |= asyncio.run(_run(target, options, warmup, pid or [], slo))
    title = f"{label or scenario.value} at concurrency {concurrency}"
    if scenario in (Scenario.POISSON, Scenario.TRACE):
        title = label or scenario.value
    console.print(run_table(document, title))
    if json_path is not None:
        save_result(document, json_path)
    if plot_path is not None:
        plot_run(document, plot_path, title)
    if document["partial"]:
        raise typer.Exit(EXIT_INTERRUPTED)
    if document["summary"]["num_failed"]:
        raise typer.Exit(EXIT_FAILED_REQUESTS)


async def _run(
    target: Target, options: ScenarioOptions, warmup: int, pids: list[int], slo: Slo | None
) -> dict[str, Any]:
    client = CompletionClient(target)
    try:
        async with Interrupt() as interrupt:
            await warm_up(client, warmup, options.concurrency, options.seed)
            workload = await create_workload(options, client)
            with _progress(len(workload.requests)) as on_end:
                return await measure(
                    workload, client, interrupt=interrupt, pids=pids, slo=slo, on_end=on_end
                )
    finally:
        client.close()


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[RequestRecord], None] | None]:
    """A bar on a terminal; nothing elsewhere. Redrawn twice a second, to stay cheap."""
    if not errors.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=errors, refresh_per_second=2) as progress:
        task = progress.add_task("requests", total=total)
        num_failed = 0

        def on_end(record: RequestRecord) -> None:
            nonlocal num_failed
            num_failed += record.error is not None
            text = f"requests ({num_failed} failed)" if num_failed else "requests"
            progress.update(task, advance=1, description=text)

        yield on_end
