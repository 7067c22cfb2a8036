"""`tandem perplexity`: how well a model expects a text, here or on a running server."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress

from engine.errors import EngineError
from engine.model_spec import ModelSpec
from engine.text.scores.passages import ScoredFile
from engine.text.scores.sums import Tell
from server.settings import ClientSettings, Settings
from server.terminal.client import ServerProblem, first_text_model, open_client
from server.terminal.local_measurement import MeasurementProblem, local_report
from server.terminal.quality_table import quality_table
from server.terminal.served_measurement import served_report

Measure = Callable[[Tell], dict[str, Any]]
"""Gives the report, with `model` and `against`."""


def local(
    settings: Settings, model: ModelSpec, against: ModelSpec | None, file: ScoredFile
) -> Measure:
    """Of a model that is loaded here, as the settings say."""
    other = None if against is None else against.name

    def measure(tell: Tell) -> dict[str, Any]:
        file.read()  # what is wrong with it is said before anything is loaded
        report = local_report(
            settings,
            model.config(settings.engine),
            model=model.ref,
            against=None if against is None else against.ref,
            file=file,
            tell=tell,
        )
        return {"model": model.name, "against": other, **report}

    return measure


def served(settings: ClientSettings, model: str | None, file: ScoredFile) -> Measure:
    """Of a server's model, by default its first one."""

    def measure(tell: Tell) -> dict[str, Any]:
        text = file.read()
        with open_client(settings) as client:
            name = model or first_text_model(client)
            report = served_report(client, name, text, file, tell)
        return {"model": name, "against": None, **report}

    return measure


def perplexity_command(measure: Measure, *, as_json: bool, max_kl: float | None) -> int:
    """Measure and print. Returns the exit code: 1 if the divergence is above `max_kl`, 2 if it
    cannot be measured."""
    try:
        with _progress() as tell:
            report = measure(tell)
    except (EngineError, ServerProblem, MeasurementProblem) as problem:
        typer.echo(f"tandem: {problem}", err=True)
        return 2
    except KeyboardInterrupt:
        return 130
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        Console(markup=False, highlight=False).print(quality_table(report))
    if max_kl is not None and report["kl_divergence"] > max_kl:
        found = f"{report['kl_divergence']:.6f}"
        typer.echo(f"tandem: the KL divergence is {found}; --max-kl is {max_kl}", err=True)
        return 1
    return 0


@contextmanager
def _progress() -> Iterator[Tell]:
    """A line on a terminal's standard error."""
    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=None)

        def tell(message: Mapping[str, Any]) -> None:
            if "passage" in message:
                line = f"passage {message['passage']}/{message['of']}"
                line += f", perplexity {message['perplexity']:.3f}"
                progress.update(
                    task, description=line, completed=message["passage"], total=message["of"]
                )
            else:
                line = message["detail"] or message["phase"]
                fraction = message["progress"]
                total = None if fraction is None else 1.0
                progress.update(task, description=line, completed=fraction or 0.0, total=total)

        yield tell
