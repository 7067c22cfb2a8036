"""Fuzzes the readers of files and the HTTP surface for hours.

    python -m tools.fuzz --hours 1 [--seed N] [--only readers|surface]

Half of the time goes to each. A finding is a 5xx, a request without an end or an answer, a dead
worker, an exception that is not one of `engine.errors`, a dead reader, or growth of memory. Each is
kept in build/fuzz with its seed and the bytes that show it; with any, the status is 1.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from loadtest.interrupt import Interrupt
from loadtest.scenario import random_seed
from tools.endurance.served import running
from tools.fuzz.findings import Findings
from tools.fuzz.readers import READERS
from tools.fuzz.surface import Surface, material
from tools.fuzz.trials import try_reader

_FOLDER = Path("build/fuzz")
_PARTS = ("readers", "surface")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None, help="default: random")
    parser.add_argument("--only", choices=_PARTS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends readers as Ctrl-C does
    seed = random_seed() if options.seed is None else options.seed
    parts = [options.only] if options.only else _PARTS
    seconds = options.hours * 3600 / len(parts)
    findings = Findings(_FOLDER / str(seed), _say)
    _say(f"seed {seed}")
    if "readers" in parts:
        for name in READERS:
            outcomes = try_reader(name, seed, seconds / len(READERS), findings)
            _say(f"{name}: {outcomes.total()} files, {dict(outcomes.most_common())}")
    if "surface" in parts:
        asyncio.run(_surface(seed, seconds, findings))
    for kind, count in findings.kinds.items():
        _say(f"{count} times {kind}")
    sys.exit(1 if findings.kinds else 0)


async def _surface(seed: int, seconds: float, findings: Findings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        served = running(material(Path(folder)), _FOLDER / "surface.log")
        async with Interrupt() as interrupt, served as server:
            surface = Surface(server, seed, findings)
            requests = asyncio.create_task(asyncio.to_thread(surface.run, seconds))
            await interrupt.run(_done(requests))
            surface.stopped.set()
            await requests
            for problem in await server.end():
                findings.add(problem, str(seed), problem, {})
        counted = dict(surface.statuses.most_common())
        _say(f"surface: {surface.statuses.total()} requests, {counted}")


async def _done(task: asyncio.Task[None]) -> None:
    """Wait for it; leave it alone when the wait is cancelled."""
    await asyncio.wait([task])


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
