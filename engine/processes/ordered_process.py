"""A process that the command line starts for a single order, because it does without torch itself.

The order is a JSON object, the only argument. The process writes one JSON object per line:
progress, then `report`, or `problem` with exit code 2. What libraries print, which may also be
JSON, goes to standard error.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from engine.contract.host import Tell
from engine.errors import EngineError
from engine.processes.logs import configure_logging
from engine.runtime.threads import prepare_process

_OUTPUT, _ERRORS = 1, 2


def run_ordered(carry_out: Callable[[Mapping[str, Any], Tell], Mapping[str, Any]]) -> int:
    """Carry out the order in the argument and write the report. Returns the exit code."""
    configure_logging("console", "warning")
    prepare_process()
    tell = _tell_alone()
    try:
        tell({"report": carry_out(json.loads(sys.argv[1]), tell)})
    except EngineError as error:
        hint = f"; {error.hint}" if error.hint else ""
        tell({"problem": f"{error.message}{hint}"})
        return 2
    except KeyboardInterrupt:  # whoever started this process gets it, too
        return 130
    return 0


def _tell_alone() -> Tell:
    """Make a function that alone writes to standard output from now on."""
    output = os.fdopen(os.dup(_OUTPUT), "w", encoding="utf-8")
    os.dup2(_ERRORS, _OUTPUT)

    def tell(message: Mapping[str, Any]) -> None:
        output.write(f"{json.dumps(message)}\n")
        output.flush()

    return tell
