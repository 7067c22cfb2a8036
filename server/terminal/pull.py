"""`tandem pull`: fetches a model, without a server."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

import typer

from engine.contract.model_spec import ModelSpec
from engine.contract.orders import PullingOrder
from server.settings import Settings
from server.terminal.own_process import OrderProblem, report_of, told_in_a_line
from server.terminal.progress import progress_line

_OFFLINE = "offline mode is on"


@told_in_a_line
def pull_command(model: ModelSpec, settings: Settings, *, as_json: bool) -> int:
    """Fetch and say where it is. Returns the exit code: 2 if it cannot be fetched."""
    fetched = False
    with progress_line() as show:

        def tell(message: Mapping[str, Any]) -> None:
            nonlocal fetched
            fetched |= message["progress"] is not None
            show(message)

        order = PullingOrder(model=model.ref)
        try:
            report = report_of(order, settings, model.config(settings.engine_config), tell)
        except OrderProblem as problem:
            raise OrderProblem(_with_ways_out(str(problem), model, settings)) from None
    report["fetched"] = fetched
    typer.echo(json.dumps(report, indent=2) if as_json else _told(report, model))
    return 0


def _with_ways_out(problem: str, model: ModelSpec, settings: Settings) -> str:
    """The problem, with what else helps where the network may not be used or is not there."""
    what, _, _ = problem.partition("; ")
    folder = "HF_HOME (~/.cache/huggingface)" if "/" in model.ref else settings.cache_path
    copy = f"run `tandem pull {model.ref}` on a machine with network access and copy {folder} here"
    if _OFFLINE in problem:
        return f"{what}; unset TANDEM_OFFLINE, or {copy}"
    return f"{problem}\nWithout a network: {copy}" if "could not be fetched" in problem else problem


def _told(report: Mapping[str, Any], model: ModelSpec) -> str:
    size = f"{report['bytes'] / 1e6:,.1f} MB"
    done = "was fetched" if report["fetched"] else "is here already"
    return (
        f"{report['model']} {done}: {size} in {report['path']}\n"
        f"Serve it with: tandem serve --model {shlex.quote(model.ref)}"
    )
