"""Tries every architecture of the installed transformers and writes docs/models.md.

    python -m tools.architectures              # all of them, which takes about half an hour
    python -m tools.architectures --rest       # those that docs/models.json does not have yet
    python -m tools.architectures NAME …       # these again
    python -m tools.architectures --page       # only writes the page

Each architecture is tried in a process of its own, so one that crashes or hangs is a row, too.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import warnings
from multiprocessing.connection import Connection
from typing import Any

import torch
import transformers

from tools.architectures.page import DATA, PAGE, page_of, summary
from tools.architectures.tiny import architectures
from tools.architectures.trial import try_architecture

LIMIT_S = 180.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.architectures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all architectures")
    parser.add_argument("--rest", action="store_true", help="only those without a result")
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args()
    known = architectures()
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"transformers {transformers.__version__} has no {', '.join(unknown)}")
    rows = json.loads(DATA.read_text()) if DATA.exists() else {}
    names = options.names or [one for one in known if not (options.rest and one in rows)]
    if not options.page:
        try_architecture("OlmoForCausalLM")  # imports and loads what all processes need
    for name in () if options.page else names:
        row = tried(name)
        rows[name] = {"kind": known[name], **row}
        DATA.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
        print(f"{name}: {summary(row)}", flush=True)
    PAGE.write_text(page_of(rows, transformers.__version__))


def tried(architecture: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """The row of an architecture, whatever happens to the process that tries it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_try, args=(architecture, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit_s):
            return {"state": "failed", "reason": f"it takes longer than {limit_s:.0f} s"}
        row: dict[str, Any] = ours.recv()
        return row
    except EOFError:
        process.join()
        return {"state": "failed", "reason": f"its process ended with code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _try(architecture: str, pipe: Connection) -> None:
    with open(os.devnull, "w") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    try:
        row = try_architecture(architecture)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        row = {"state": "failed", "reason": f"{type(error).__name__}: {text}"}
    with contextlib.closing(pipe):
        pipe.send(row)


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    main()
