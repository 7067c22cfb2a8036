"""Runs as `python -m engine.planning ORDER`, which makes the plan that a JSON object orders."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.contract.host import Tell
from engine.contract.settings import EngineConfig
from engine.processes.ordered_process import run_ordered


def _planned(order: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    # torch reads its settings when it is imported, so they are prepared before.
    from engine.planning.planner import Order, make_plan
    from engine.runtime.device import choose_cpu_isa
    from kernels.cache_folder import use_cache_folder

    cache = Path(order["cache_dir"])
    use_cache_folder(cache / "kernels")
    choose_cpu_isa(order["cpu_isa"])
    wanted = Order(
        model=order["model"],
        config=EngineConfig(**{**order["config"], "lora": tuple(order["config"]["lora"])}),
        gpu=order["gpu"],
        concurrency=order["concurrency"],
        context=order["context"],
        cache_dir=cache,
        offline=order["offline"],
    )
    return make_plan(wanted, tell)


if __name__ == "__main__":
    sys.exit(run_ordered(_planned))
