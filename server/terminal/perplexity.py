"""`tandem perplexity`: how well a model predicts a text, here or on a running server."""

import json
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console

from engine.contract.host import Tell
from engine.contract.model_spec import ModelSpec
from engine.contract.orders import MeasuringOrder
from engine.text.scores.passages import ScoredFile
from server.settings import ClientSettings, Settings
from server.terminal.client import first_text_model, open_client
from server.terminal.own_process import report_of, told_in_a_line
from server.terminal.progress import progress_line
from server.terminal.quality_table import quality_table
from server.terminal.served_measurement import served_report

Measure = Callable[[Tell], dict[str, Any]]
"""Makes the report, with `model` and `against`."""


def local(
    settings: Settings,
    model: ModelSpec,
    against: ModelSpec | None,
    file: ScoredFile,
    *,
    save: bool = False,
) -> Measure:
    """The measurement of a model that is loaded here, as the settings say.

    Args:
        save: save the result beside the model's weights.
    """
    other = None if against is None else against.name

    def measure(tell: Tell) -> dict[str, Any]:
        file.read()  # problems with the file are reported before anything is loaded
        order = MeasuringOrder(
            model=model.ref,
            against=None if against is None else against.ref,
            text=file.path,
            context=file.context,
            passages=file.passages,
            save=save,
        )
        config = model.config(settings.engine)
        report = report_of(order, settings, config, tell)
        return {"model": model.name, "against": other, **report}

    return measure


def served(settings: ClientSettings, model: str | None, file: ScoredFile) -> Measure:
    """The measurement of a server's model, by default its first one."""

    def measure(tell: Tell) -> dict[str, Any]:
        text = file.read()
        with open_client(settings) as client:
            name = model or first_text_model(client)
            report = served_report(client, name, text, file, tell)
        return {"model": name, "against": None, **report}

    return measure


@told_in_a_line
def perplexity_command(measure: Measure, *, as_json: bool, max_kl: float | None) -> int:
    """Measure and print. Returns the exit code: 1 if the divergence is above `max_kl`, 2 if it
    cannot be measured."""
    with progress_line() as tell:
        report = measure(tell)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        Console(markup=False, highlight=False).print(quality_table(report))
    if max_kl is not None and report["kl_divergence"] > max_kl:
        found = f"{report['kl_divergence']:.6f}"
        typer.echo(f"the KL divergence is {found}, above --max-kl {max_kl}", err=True)
        return 1
    return 0
