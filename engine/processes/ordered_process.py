"""A process that the command line starts for a single order, because the command line itself does
not import torch.

It runs as `python -m engine.processes.ordered_process KIND ORDER`: the name of a class of
`engine.contract.orders` and a JSON object. It writes one JSON object per line:
progress, then `report`, or `problem` with exit code 2. What libraries print, which may also be
JSON, goes to standard error.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from engine.contract import orders
from engine.contract.host import Tell
from engine.contract.kinds import imported
from engine.contract.orders import Order
from engine.errors import EngineError
from engine.processes.logs import configure_logging
from engine.runtime.threads import prepare_process

_OUTPUT, _ERRORS = 1, 2
_WATCH_S = 1.0


def run_ordered(kind: type[Order]) -> int:
    """Carry out the order in the last argument and write the report. Returns the exit code."""
    _end_with_the_parent()
    configure_logging("console", "warning")
    prepare_process()
    tell = _tell_alone()
    try:
        order = msgspec.json.decode(sys.argv[-1], type=kind, dec_hook=_made)
        # torch reads the prepared environment when it is imported.
        if kind.uses_operations:
            _prepare_operations(order)
        tell({"report": imported(kind.carried_out_by)(order, tell)})
    except EngineError as error:
        hint = f"; {error.hint}" if error.hint else ""
        tell({"problem": f"{error.message}{hint}"})
        return 2
    except KeyboardInterrupt:  # whoever started this process gets it, too
        return 130
    return 0


def _end_with_the_parent() -> None:
    """End when the command that waits for the report is killed: the report would never be read."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def _prepare_operations(order: Order) -> None:
    from engine.runtime.device import choose_cpu_isa
    from kernels.cache_folder import use_cache_folder

    use_cache_folder(order.cache_dir / "kernels")
    choose_cpu_isa(order.cpu_isa, order.config.optimize_for)


def _made(kind: type[Any], text: str) -> Any:
    """A value of a type that JSON does not have, such as a path."""
    return kind(text)


def _tell_alone() -> Tell:
    """Make a function that alone writes to standard output from now on."""
    output = os.fdopen(os.dup(_OUTPUT), "w", encoding="utf-8")
    os.dup2(_ERRORS, _OUTPUT)

    def tell(message: Mapping[str, Any]) -> None:
        output.write(f"{json.dumps(message)}\n")
        output.flush()

    return tell


if __name__ == "__main__":
    sys.exit(run_ordered(getattr(orders, sys.argv[1])))
