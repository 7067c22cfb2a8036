"""`python -m loadtest run`: one workload, one server."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest import run_options as given
from loadtest.client import CompletionClient, Target
from loadtest.drive import warm_up
from loadtest.interrupt import Interrupt
from loadtest.machine import provenance
from loadtest.measure import measure
from loadtest.metrics import Slo
from loadtest.record import RequestRecord
from loadtest.results import RUN_FORMAT, save_result
from loadtest.scenario import Scenario, ScenarioOptions, create_workload, random_seed
from loadtest.table import run_table
from loadtest.workload import TokenRange

console = Console()
errors = Console(stderr=True)

EXIT_FAILED_REQUESTS = 1
EXIT_INTERRUPTED = 130

_PROMPT_TOKENS = TokenRange(128, 128)
_OUTPUT_TOKENS = TokenRange(64, 64)


def run(
    model: given.Model,
    url: given.Url = "http://127.0.0.1:8000/v1",
    scenario: given.WhichScenario = Scenario.PEERS,
    concurrency: given.Concurrency = 1,
    num_requests: given.NumRequests = None,
    rate: given.Rate = 1.0,
    prompt_tokens: given.Lengths = _PROMPT_TOKENS,
    output_tokens: given.Lengths = _OUTPUT_TOKENS,
    endpoint: given.Endpoint = given.Endpoint.COMPLETIONS,
    seed: given.NewSeed = None,
    warmup: given.WarmUp = 4,
    timeout: given.Timeout = 600.0,
    keep_alive: given.KeepAlive = False,
    temperature: given.Temperature = 0.0,
    ignore_eos: given.IgnoreEos = True,
    extra_body: given.ExtraBody = None,
    api_key: given.ApiKey = None,
    slo: given.Limits = None,
    pid: given.Pids = None,
    label: given.Name = "",
    json_path: given.JsonPath = None,
) -> None:
    """Send one workload to one server; print a table and write JSON.

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
    )
    document = {"format": RUN_FORMAT, **provenance(label), "model": model}
    document |= asyncio.run(_run(target, options, warmup, pid or [], slo))
    console.print(run_table(document, _title(options, label)))
    if json_path is not None:
        save_result(document, json_path)
    if document["partial"]:
        raise typer.Exit(EXIT_INTERRUPTED)
    if document["summary"]["num_failed"]:
        raise typer.Exit(EXIT_FAILED_REQUESTS)


def _title(options: ScenarioOptions, label: str) -> str:
    name = label or options.scenario.value
    if options.scenario is Scenario.POISSON:
        return name
    return f"{name} at concurrency {options.concurrency}"


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
    """Show a progress bar if the output is a terminal. Redrawn twice a second, to stay cheap."""
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
