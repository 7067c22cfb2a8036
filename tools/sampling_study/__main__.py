"""`python -m tools.sampling_study [MEASUREMENT …]`: ask a server, save numbers, draw plots, and
write the part of docs/sampling.md between marks.

Needs both models: `tandem serve --model smollm2-135m-instruct --model all-minilm-l6-v2`.
"""

import argparse
import asyncio
import json
from pathlib import Path

from loadtest.markdown import page_with
from tools.sampling_study.measure import MEASUREMENTS
from tools.sampling_study.page import COMMAND, sections
from tools.sampling_study.plot import plot_all
from tools.sampling_study.server import Server

DOCS = Path(__file__).parents[2] / "docs"
DATA = DOCS / "sampling.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.sampling_study")
    parser.add_argument(
        "measurements",
        nargs="*",
        help=f"any of {', '.join(MEASUREMENTS)}; without one, only draw and write",
    )
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--embedder", default="all-minilm-l6-v2")
    options = parser.parse_args()
    data = json.loads(DATA.read_text()) if DATA.exists() else {}
    for name in options.measurements:
        server = Server(options.url, options.model, options.embedder)
        data[name] = asyncio.run(MEASUREMENTS[name](server))
        DATA.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    plot_all(data, DOCS / "img")
    page = DOCS / "sampling.md"
    page.write_text(page_with(page.read_text(), sections(data), COMMAND))


if __name__ == "__main__":
    main()
