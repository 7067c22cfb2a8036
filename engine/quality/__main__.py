"""`python -m engine.quality ORDER`: measures what a JSON object orders, for `tandem perplexity`.

Writes a JSON object a line: progress, then `report`, or `problem` and exit code 2.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.errors import EngineError
from engine.logs import configure_logging
from engine.runtime.threads import prepare_process
from engine.text.scores.passages import ScoredFile


def main() -> int:
    """Measure what the only argument orders."""
    configure_logging("console", "warning")
    prepare_process()
    try:
        _tell({"report": _measured(json.loads(sys.argv[1]))})
    except EngineError as error:
        hint = f"; {error.hint}" if error.hint else ""
        _tell({"problem": f"{error.message}{hint}"})
        return 2
    except KeyboardInterrupt:  # whoever started this is told, too
        return 130
    return 0


def _measured(order: Mapping[str, Any]) -> dict[str, Any]:
    # torch reads what was prepared when it is imported.
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
    )
    return measure(measured, _tell)


def _tell(message: Mapping[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(message)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
