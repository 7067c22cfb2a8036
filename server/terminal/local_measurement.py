"""Perplexity of a model that a process of this machine loads: `engine.quality`."""

import json
import subprocess
from dataclasses import asdict
from typing import Any

from engine.config import EngineConfig
from engine.gpus import command_on
from engine.own_packages import module_command
from engine.text.scores.passages import ScoredFile
from engine.text.scores.sums import Tell
from server.settings import Settings


class MeasurementProblem(Exception):
    """What was asked for cannot be measured. `str(problem)` is one line."""


def local_report(
    settings: Settings,
    config: EngineConfig,
    *,
    model: str,
    against: str | None,
    file: ScoredFile,
    tell: Tell,
) -> dict[str, Any]:
    """Measured by a process of its own, since this one does without torch.

    Args:
        model, against: references.
        config: how the model is kept, and where.

    Raises:
        MeasurementProblem: it cannot be done, or the process has ended without a result.
    """
    order = {
        "model": model,
        "against": against,
        "config": asdict(config),
        "file": {**asdict(file), "path": str(file.path)},
        "cache_dir": str(settings.cache_path.absolute()),
        "offline": settings.offline,
        "cpu_isa": settings.cpu_isa,
    }
    command = module_command("engine.quality", json.dumps(order))
    return _result(command_on(config.device, settings.visible_gpus, command), tell)


def _result(command: list[str], tell: Tell) -> dict[str, Any]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if not line.startswith("{"):  # what some library prints
                    continue
                message = json.loads(line)
                if "problem" in message:
                    raise MeasurementProblem(message["problem"])
                if "report" in message:
                    report: dict[str, Any] = message["report"]
                    return report
                tell(message)
        finally:
            process.kill()
    raise MeasurementProblem(
        f"the process that measures has ended with exit code {process.returncode}; what it wrote "
        f"above says why, if anything; killed (-9) it needed more memory than there is"
    )
