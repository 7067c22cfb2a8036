"""`tandem lora-train`: trains an adapter in a separate process, `engine.commands.training`."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from engine.contract.knob import GIB
from engine.contract.orders import TrainingOrder
from server.settings import Settings
from server.terminal.own_process import report_of, told_in_a_line

_PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "total")


@told_in_a_line
def lora_train_command(order: TrainingOrder, settings: Settings, *, as_json: bool = False) -> int:
    """Train, and print the result. Returns the exit code: 2 if it cannot be done."""
    console = Console(stderr=True, markup=False, highlight=False)
    with _progress(console) as tell:
        on_cpu = replace(settings.engine, device="cpu")
        report = report_of(order, settings, on_cpu, tell)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return 0
    out = Console(markup=False, highlight=False)
    if "steps" not in report:
        out.print(estimate_table(report["estimate"]))
        return 0
    out.print(
        f"loss {report['first_loss']:.4f} → {report['last_loss']:.4f} in {report['steps']} steps, "
        f"{report['seconds']:.0f} s\n"
        f"serve it: tandem serve --model {order.model} --lora NAME={report['adapter']}",
        soft_wrap=True,
    )
    return 0


def estimate_table(estimate: Mapping[str, int]) -> Table:
    """A table of the memory that a training takes."""
    table = Table(show_header=False)
    table.add_row("trained numbers", f"{estimate['num_trained']:,}")
    for part in _PARTS:
        table.add_row(part, f"{estimate[part] / GIB:.2f} GiB")
    return table


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A progress line on a terminal's standard error; lasting lines are printed above it."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=None)

        def tell(message: Mapping[str, Any]) -> None:
            match message:
                case {"estimate": estimate}:
                    console.print(estimate_table(estimate))
                case {"warning": warning}:
                    console.print(f"warning: {warning}")
                case {"step": step, "of": total, "loss": loss, "left_s": left}:
                    line = f"step {step}/{total}, loss {loss:.4f}, {left:.0f} s left"
                    progress.update(task, description=line, completed=step, total=total)
                case {"detail": detail, "progress": fraction}:
                    whole = None if fraction is None else 1.0
                    progress.update(
                        task, description=detail, completed=fraction or 0.0, total=whole
                    )

        yield tell
