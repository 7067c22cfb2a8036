"""Options that are made from the fields of an order."""

from dataclasses import MISSING, fields

import pytest
from typer.testing import CliRunner

from engine.contract.orders import PlanningOrder, QuantizingOrder, TrainingOrder
from server.cli import app

COMMANDS = {
    "lora-train": (TrainingOrder, {"task": "text", "model": "m", "data": "d", "output": "o"}),
    "quantize": (QuantizingOrder, {"model": "m", "method": "int4", "output": "o"}),
    "plan": (PlanningOrder, {"model": "m"}),
}
KNOBS = [
    (command, one)
    for command, (kind, _) in COMMANDS.items()
    for one in fields(kind)
    if "help" in one.metadata
]
OUTSIDE = [
    (command, one.name, bound + step)
    for command, one in KNOBS
    for bound, step in ((one.metadata["ge"], -1), (one.metadata["le"], 1))
    if bound is not None
]


def invoke(command, values):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    return CliRunner().invoke(app, [command, *options])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_field(command):
    shown = "".join(CliRunner().invoke(app, [command, "--help"]).stdout.split())
    for name, one in KNOBS:
        assert name != command or "".join(one.metadata["help"].split()) in shown


@pytest.mark.parametrize(("command", "name", "value"), OUTSIDE)
def test_numbers_out_of_bounds_are_refused(command, name, value, child):
    kind, needed = COMMANDS[command]
    done = invoke(command, {**needed, name: value})
    assert done.exit_code == 2 and f"--{name.replace('_', '-')}" in done.stderr
    assert not child["orders"]
    with pytest.raises(Exception, match=f"^{name} is .*it must be "):
        kind(**needed, **{name: value})


def test_fields_without_a_default_must_be_given(child):
    for command, one in KNOBS:
        if one.default is MISSING:
            needed = COMMANDS[command][1]
            done = invoke(command, {k: v for k, v in needed.items() if k != one.name})
            assert done.exit_code == 2 and f"--{one.name}" in done.stderr
    assert not child["orders"]
