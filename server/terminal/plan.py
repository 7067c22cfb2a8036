"""`tandem plan`: how much memory a model needs on a device, and how fast it can be there."""

import json

import typer

from engine.contract.model_spec import ModelSpec
from engine.errors import EngineError
from engine.planning.plain_text import plan_table
from server.settings import Settings
from server.terminal.own_process import OrderProblem, report_of
from server.terminal.progress import progress_line


def plan_command(
    settings: Settings,
    model: ModelSpec,
    *,
    gpu: str | None,
    concurrency: int,
    context: int | None,
    as_json: bool,
) -> int:
    """Plan and print. Returns the exit code: 1 if nothing fits, 2 if planning is not possible."""
    order = {"model": model.ref, "gpu": gpu, "concurrency": concurrency, "context": context}
    try:
        with progress_line() as tell:
            config = model.config(settings.engine_config)
            plan = report_of("engine.planning", settings, config, order, tell)
    except (EngineError, OrderProblem) as problem:
        typer.echo(f"tandem: {problem}", err=True)
        return 2
    except KeyboardInterrupt:
        return 130
    typer.echo(json.dumps(plan, indent=2) if as_json else plan_table(plan))
    return 0 if any(row["fits"] for row in plan["rows"]) else 1
