"""Runs work in a separate process, because this one does without torch."""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from engine.contract.gpus import command_on
from engine.contract.host import Tell
from engine.contract.settings import EngineConfig
from engine.processes.own_packages import module_command
from server.settings import Settings


class OrderProblem(Exception):
    """The order cannot be carried out. `str(problem)` is one line, perhaps followed by a table."""


def report_of(
    module: str, settings: Settings, config: EngineConfig, order: Mapping[str, Any], tell: Tell
) -> dict[str, Any]:
    """The report of `python -m module` about an order; the settings that all such modules need are
    added.

    Args:
        config: how and where to load the model.

    Raises:
        OrderProblem: it cannot be done, or the process ended without a result.
    """
    whole = {
        **order,
        "config": asdict(config),
        "cache_dir": str(settings.cache_path.absolute()),
        "offline": settings.offline,
        "cpu_isa": settings.cpu_isa,
    }
    command = module_command(module, json.dumps(whole))
    return _result(command_on(config.device, settings.visible_gpus, command), tell)


def _result(command: list[str], tell: Tell) -> dict[str, Any]:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
