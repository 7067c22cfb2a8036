"""Runs as `python -m engine.training ORDER`, which trains what a JSON object orders."""

import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.contract.host import Tell
from engine.processes.ordered_process import run_ordered
from engine.training.order import TrainingOrder

_OF_OTHER_ORDERS = ("estimate", "config", "cpu_isa")
"""Keys of an order that are not part of a `TrainingOrder`; the last two are for operations of our
own, which are not used here."""


def _trained(order: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    # torch reads its settings when it is imported, so they are prepared before.
    from engine.runtime.device import machine_facts
    from engine.runtime.threads import limit_threads
    from engine.training.run import check_packages, run

    # Libraries announce changes, and mistake our package `kernels` for another one.
    warnings.simplefilter("ignore", FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    fields = {name: value for name, value in order.items() if name not in _OF_OTHER_ORDERS}
    fields |= {name: Path(order[name]) for name in ("data", "output", "cache_dir")}
    fields |= {name: tuple(order[name]) for name in ("targets", "sample_prompts")}
    wanted = TrainingOrder(**fields)
    if order["estimate"] is not None:
        from engine.training.shapes import estimate_shape

        wanted.check()
        check_packages()
        return {"estimate": estimate_shape(order["estimate"], wanted).report()}
    machine = machine_facts("cpu")
    limit_threads(machine.num_cores)
    return run(wanted, machine.free_memory_bytes, tell)


if __name__ == "__main__":
    sys.exit(run_ordered(_trained))
