"""`python -m engine.quantizing ORDER`: makes the checkpoint that a JSON object orders, for `tandem
quantize`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.contract.host import Tell
from engine.processes.ordered_process import run_ordered


def _made(order: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    # torch reads the prepared environment when it is imported.
    from engine.quantizing.order import Order, carry_out

    wanted = Order(
        model=order["model"],
        method=order["method"],
        bits=order["bits"],
        group_size=order["group_size"],
        calibration=None if order["calibration"] is None else Path(order["calibration"]),
        output=Path(order["output"]),
        cache_dir=Path(order["cache_dir"]),
        offline=order["offline"],
    )
    return carry_out(wanted, tell)


if __name__ == "__main__":
    sys.exit(run_ordered(_made))
