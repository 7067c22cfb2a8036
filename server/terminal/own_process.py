"""Runs work in a separate process, because this one does without torch."""

import functools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ParamSpec

import msgspec
import typer

from engine.contract.gpus import gpu_variables
from engine.contract.host import Tell
from engine.contract.orders import Order
from engine.contract.settings import EngineConfig
from engine.errors import EngineError
from engine.processes.environment import environment_with
from engine.processes.own_packages import module_command
from server.settings import Settings
from server.terminal.client import ServerProblem

P = ParamSpec("P")


class OrderProblem(Exception):
    """The order cannot be carried out. `str(problem)` is one line, perhaps followed by a table."""


def told_in_a_line(command: Callable[P, int]) -> Callable[P, int]:
    """Decorate a command that returns its exit code: a problem becomes one line and code 2."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return command(*args, **kwargs)
        except (EngineError, ServerProblem, OrderProblem) as problem:
            typer.echo(f"tandem: {problem}", err=True)
            return 2
        except KeyboardInterrupt:
            return 130

    return run


def report_of(order: Order, settings: Settings, config: EngineConfig, tell: Tell) -> dict[str, Any]:
    """The report of a process about an order, to which the server's settings are added.

    Args:
        config: how and where to load the model.

    Raises:
        OrderProblem: it cannot be done, or the process ended without a result.
    """
    whole = replace(
        order,
        config=config,
        cache_dir=settings.cache_path.absolute(),
        offline=settings.offline,
        cpu_isa=settings.cpu_isa,
    )
    text = msgspec.json.encode(whole, enc_hook=str).decode()
    command = module_command("engine.processes.ordered_process", type(order).__name__, text)
    return _result(command, gpu_variables(config.device, settings.visible_gpus), tell)


def _result(command: Sequence[str], variables: Mapping[str, str], tell: Tell) -> dict[str, Any]:
    with subprocess.Popen(
        command,
        env=environment_with(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        # What it logs is to stand above the progress line, not in it.
        logs = threading.Thread(target=sys.stderr.writelines, args=[process.stderr], daemon=True)
        logs.start()
        try:
            for line in process.stdout:
                if not line.startswith("{"):  # output of some library
                    continue
                message = json.loads(line)
                if "problem" in message:
                    raise OrderProblem(message["problem"])
                if "report" in message:
                    report: dict[str, Any] = message["report"]
                    return report
                tell(message)
        finally:
            process.kill()
            logs.join(timeout=1.0)
    raise OrderProblem(
        f"the process ended with exit code {process.returncode} and no result; its output above "
        "may say why; exit code -9 means that it was killed, usually because the machine ran out "
        "of memory"
    )
