"""Fixtures for tests of commands that start a process of their own."""

import json
import sys

import pytest

from server.terminal import own_process


@pytest.fixture
def child(monkeypatch):
    """The process that a command starts: `orders` are what it was told, `devices` and `commands`
    how it was started; `log` and `lines` are what it says, before it ends with `code`."""
    child = {"orders": [], "devices": [], "commands": [], "log": [], "lines": [], "code": 0}

    def gpu_variables(device, visible):
        child["devices"].append(device)
        return {}

    def module_command(*command):
        child["commands"].append(" ".join(command))
        child["orders"].append(json.loads(command[-1]))
        lines = ["Some library says hello", *map(json.dumps, child["lines"])]
        script = "; ".join(f"print({line!r})" for line in lines)
        script = f"import os; os.write(2, {''.join(child['log'])!r}.encode()); {script}"
        return [sys.executable, "-c", f"{script}; raise SystemExit({child['code']})"]

    monkeypatch.setattr(own_process, "gpu_variables", gpu_variables)
    monkeypatch.setattr(own_process, "module_command", module_command)
    return child
