"""Runs as `python -m engine.quality ORDER`, which measures what a JSON object orders."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.contract.host import Tell
from engine.contract.settings import EngineConfig
from engine.processes.ordered_process import run_ordered
from engine.text.scores.passages import ScoredFile


def _measured(order: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    # torch reads its settings when it is imported, so they are prepared before.
    from engine.quality.measurement import Order, measure
    from engine.runtime.device import choose_cpu_isa
    from kernels.cache_folder import use_cache_folder

    cache = Path(order["cache_dir"])
    use_cache_folder(cache / "kernels")
    choose_cpu_isa(order["cpu_isa"])
    file = ScoredFile(**{**order["file"], "path": Path(order["file"]["path"])})
    measured = Order(
        model=order["model"],
        against=order["against"],
        config=EngineConfig(**{**order["config"], "lora": ()}),
        file=file,
        cache_dir=cache,
        offline=order["offline"],
        save=order["save"],
    )
    return measure(measured, tell)


if __name__ == "__main__":
    sys.exit(run_ordered(_measured))
