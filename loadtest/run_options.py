"""Options of `loadtest run`: the workload, the server and the outputs."""

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from loadtest.metrics import Slo
from loadtest.scenario import Scenario
from loadtest.workload import TokenRange

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


Model = Annotated[str, typer.Option(help="Model id, as the server lists it.")]
Url = Annotated[str, typer.Option(help="Base URL of the API.")]
WhichScenario = Annotated[
    Scenario,
    typer.Option(
        help="peers: the workload of the comparisons (100 random words in, 64 tokens "
        "out). closed: N clients. poisson: random arrivals."
    ),
]
Concurrency = Annotated[int, typer.Option("--concurrency", "-c", min=1)]
NumRequests = Annotated[
    int | None,
    typer.Option("--num-requests", "-n", min=1, help="Default: depends on the scenario."),
]
Rate = Annotated[float, typer.Option(min=0.001, help="poisson: requests per second.")]
Lengths = Annotated[
    TokenRange,
    typer.Option(
        parser=_parsed(TokenRange.parse), metavar="N|LOW:HIGH", help="closed, poisson: tokens."
    ),
]
NewSeed = Annotated[
    int | None, typer.Option(min=0, help="Default: random, so every prompt is new.")
]
WarmUp = Annotated[int, typer.Option(min=0, help="Unmeasured requests before the run.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds per request.")]
KeepAlive = Annotated[
    bool,
    typer.Option("--keep-alive/--new-connections", help="Reuse connections between requests."),
]
Temperature = Annotated[float, typer.Option(min=0)]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos/--stop-at-eos", help="Generate up to max_tokens.")
]
ExtraBody = Annotated[
    dict[str, Any] | None,
    typer.Option(parser=_parsed(_json_object), metavar="JSON", help="Added to every request."),
]
ApiKey = Annotated[str | None, typer.Option(envvar="LOADTEST_API_KEY")]
Limits = Annotated[
    Slo | None,
    typer.Option(
        parser=_parsed(Slo.parse),
        metavar="ttft=2000,itl=100",
        help="Limits in ms for goodput: ttft, itl (99 % of a request's gaps), tpot, e2e.",
    ),
]
Pids = Annotated[
    list[int] | None,
    typer.Option(help="Root of the server's process tree, to measure memory and CPU. Repeatable."),
]
Name = Annotated[str, typer.Option(help="A name for the results.")]
JsonPath = Annotated[Path | None, typer.Option("--json", help="Write all results here.")]
