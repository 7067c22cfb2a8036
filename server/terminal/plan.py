"""`tandem plan`: how much memory a model needs on a device, and how fast it can be there."""

import json

import typer

from engine.contract.model_spec import ModelSpec
from engine.contract.orders import PlanningOrder
from engine.planning.plain_text import plan_table
from server.settings import Settings
from server.terminal.own_process import report_of, told_in_a_line
from server.terminal.progress import progress_line


@told_in_a_line
def plan_command(
    order: PlanningOrder, settings: Settings, model: ModelSpec, *, as_json: bool
) -> int:
    """Plan and print. Returns the exit code: 1 if nothing fits, 2 if planning is not possible."""
    with progress_line() as tell:
        config = model.config(settings.engine_config)
        plan = report_of(order, settings, config, tell)
    typer.echo(json.dumps(plan, indent=2) if as_json else plan_table(plan))
    return 0 if any(row["fits"] for row in plan["rows"]) else 1
