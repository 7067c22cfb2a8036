"""What another process finds out, told a JSON object a line: `report` or `problem` last."""

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from engine.text.scores.sums import Tell


class ChildProblem(Exception):
    """What was asked for cannot be done. `str(problem)` is one line."""


def child_report(command: Sequence[str], tell: Tell) -> dict[str, Any]:
    """Run a command until it reports. It ends with the caller.

    Args:
        tell: is told of what it says before.

    Raises:
        ChildProblem: it cannot be done, or the process has ended without a result.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if not line.startswith("{"):  # what some library prints
                    continue
                message = json.loads(line)
                if "problem" in message:
                    raise ChildProblem(message["problem"])
                if "report" in message:
                    report: dict[str, Any] = message["report"]
                    return report
                tell(message)
        finally:
            process.kill()
    raise ChildProblem(
        f"the process that does it has ended with exit code {process.returncode}; what it wrote "
        f"above says why, if anything; killed (-9) it needed more memory than there is"
    )
