"""`python -m tools.scaling [EXPERIMENT …]`: runs replicas in virtual time and keeps the numbers.

`costs` measures this machine's steps, and later runs use those numbers instead of
`engine.llm.cost.step_cost.TYPICAL`. `handover` measures two servers, of which one continues what
the other has computed. Without a name, only the tables and the plot of docs/SCALING.md are written
anew.
"""

import argparse
import json
from typing import Any

from engine.llm.cost.step_cost import TYPICAL
from server.settings import load_settings
from tools.scaling.experiments import EXPERIMENTS
from tools.scaling.page import DATA, write_page
from tools.scaling.replica import Machine

NUM_KV_BLOCKS = 11_650
"""The blocks of the default model's KV pool on a CPU: 4 GiB at 23,040 bytes a token."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.scaling")
    names = ["costs", "handover", *EXPERIMENTS]
    parser.add_argument("experiments", nargs="*", help=f"any of {', '.join(names)}")
    options = parser.parse_args()
    if unknown := set(options.experiments) - set(names):
        parser.error(f"there is no experiment {', '.join(unknown)}; there are {', '.join(names)}")
    data: dict[str, Any] = json.loads(DATA.read_text()) if DATA.exists() else {}
    for name in options.experiments:
        if name == "costs":
            from tools.scaling.step_costs import measure

            data[name] = measure(load_settings({}).cache_path)
        elif name == "handover":
            from tools.scaling.handover import measure as measure_handover

            data[name] = measure_handover()
        else:
            costs = tuple(data["costs"]["costs"]) if "costs" in data else TYPICAL
            data[name] = EXPERIMENTS[name](Machine(step_costs=costs, num_kv_blocks=NUM_KV_BLOCKS))
        DATA.write_text(json.dumps(data, indent=1) + "\n")
    write_page(data)


if __name__ == "__main__":
    main()
