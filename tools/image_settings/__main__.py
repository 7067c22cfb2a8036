"""Compares settings of images on the built-in model, and writes a part of docs/evaluation.md.

    python -m tools.image_settings measure [--num N] [--adapter FOLDER]
    python -m tools.image_settings page

`measure` starts a server for each format. It keeps the pictures in build/image-settings, draws
those that are missing, and writes docs/image_settings.json and a sheet of the first questions.
Without an adapter of the built-in model, no settings of adapters are compared.
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.machine import provenance
from loadtest.markdown import page_with
from tools.demo_image_model.grids import sheet
from tools.demo_image_model.questions import Question
from tools.image_settings.drawing import draw_all, pictures
from tools.image_settings.judging import changed_share, differences, draw_questions, verdicts
from tools.image_settings.page import COMMAND, sections
from tools.image_settings.settings import DEFAULTS, SETTINGS, Setting, adapter_settings

DOCS = Path(__file__).parents[2] / "docs"
DATA = DOCS / "image_settings.json"
PAGE = DOCS / "evaluation.md"
SHEET = DOCS / "img" / "image-settings.png"
ON_SHEET = 9
_FOLDER = Path("build/image-settings")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.image_settings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(required=True)
    measuring = steps.add_parser("measure")
    measuring.add_argument("--num", type=int, default=192, help="questions")
    measuring.add_argument("--adapter", help="folder of an adapter of the built-in model")
    measuring.set_defaults(work=measure)
    steps.add_parser("page").set_defaults(work=page)
    options = parser.parse_args()
    options.work(options)


def measure(options: argparse.Namespace) -> None:
    adapters = adapter_settings(options.adapter) if options.adapter else ()
    settings = (*SETTINGS, *adapters)
    questions = draw_questions(options.num)
    asyncio.run(draw_all(settings, questions, _FOLDER))
    found = provenance("", "tools.image_settings") | {"settings": compared(settings, questions)}
    DATA.write_text(json.dumps(found, indent=1) + "\n")
    rows = [(one.name, pictures(one, questions[:ON_SHEET], _FOLDER)) for one in settings]
    numbers = [str(number + 1) for number in range(ON_SHEET)]
    sheet(rows, numbers).save(SHEET, optimize=True)


def compared(settings: Sequence[Setting], questions: Sequence[Question]) -> dict[str, Any]:
    """Each setting's scores against those of the defaults, by its name."""
    theirs = pictures(DEFAULTS, questions, _FOLDER)
    judged = verdicts(questions, theirs)
    found = {}
    for one in settings:
        if one is not DEFAULTS:
            its = pictures(one, questions, _FOLDER)
            found[one.name] = {
                "group": one.group,
                "scores": differences(judged, verdicts(questions, its)),
                "changed": changed_share(theirs, its),
            }
    return found


def page(options: argparse.Namespace) -> None:
    PAGE.write_text(page_with(PAGE.read_text(), sections(json.loads(DATA.read_text())), COMMAND))


if __name__ == "__main__":
    main()
