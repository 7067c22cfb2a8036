"""Tests a server's endurance, and writes docs/endurance.md from what was found.

    python -m tools.endurance soak --hours 1 [--seed N] [--tiny]
    python -m tools.endurance chaos --seeds 50 [--first-seed N]
    python -m tools.endurance page

`soak` and `chaos` start servers of their own and end with status 1 if anything was wrong. With
`--save` they replace their part of docs/endurance.json. A seed repeats what is asked and which
faults are made, not the times of the answers.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from loadtest.interrupt import Interrupt
from loadtest.machine import provenance
from loadtest.scenario import random_seed
from tools.endurance import network
from tools.endurance.chaos import Chaos, ChaosRun
from tools.endurance.page import keep, write_page
from tools.endurance.served import default_material, running, tiny_material
from tools.endurance.soak import Plan, Soak

LOGS = Path("build/endurance")
_MODULE = "tools.endurance"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m {_MODULE}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(required=True)

    def step(work: Callable[[argparse.Namespace], bool]) -> argparse.ArgumentParser:
        one = steps.add_parser(work.__name__)
        one.set_defaults(work=work)
        return one

    soaking = step(soak)
    soaking.add_argument("--hours", type=float, default=1.0)
    soaking.add_argument("--seed", type=int, default=None, help="default: random")
    soaking.add_argument("--users", type=int, default=5)
    soaking.add_argument("--lap", type=float, default=45.0, help="seconds between quiet points")
    soaking.add_argument("--tiny", action="store_true", help="a tiny random text model")
    chaotic = step(chaos)
    chaotic.add_argument("--seeds", type=int, default=50, help="how many seeds")
    chaotic.add_argument("--first-seed", type=int, default=1)
    for one in (soaking, chaotic):
        one.add_argument("--save", action="store_true", help="replace this part of the results")
    step(page)
    options = parser.parse_args()
    sys.exit(0 if options.work(options) else 1)


def soak(options: argparse.Namespace) -> bool:
    seed = random_seed() if options.seed is None else options.seed
    plan = Plan(seed, options.hours * 3600, options.users, options.lap)
    facts = provenance("soak", _MODULE)
    _say(f"seed {seed}")

    async def work(folder: Path) -> bool:
        make = tiny_material if options.tiny else default_material
        material = make(folder)
        async with running(material, LOGS / "soak.log") as server, Interrupt() as interrupt:
            test = Soak(plan, material, server, _say)
            await interrupt.run(test.soak())
            await test.end()
        if options.save:
            told = {"seed": seed, "users": plan.users, "lap_s": plan.lap_s}
            keep("soak", facts | told | {"server": material.shown_command} | test.run.to_json())
        _say(f"{test.run.requests.total()} requests, {test.run.num_problems} problems")
        return not test.run.num_problems

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(work(Path(folder)))


def chaos(options: argparse.Namespace) -> bool:
    network.enter()
    facts = provenance("chaos", _MODULE)
    runs: list[ChaosRun] = []

    async def all_seeds(test: Chaos) -> None:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            runs.append(await test.run(seed))
            if options.save:
                rows = [run.to_json() for run in runs]
                keep("chaos", facts | {"load_s": round(test.load_s, 1), "runs": rows})

    async def work(folder: Path) -> list[str]:
        async with Chaos(folder, LOGS / "chaos.log", _say) as test, Interrupt() as interrupt:
            await interrupt.run(all_seeds(test))
            return await test.end()

    with tempfile.TemporaryDirectory() as folder:
        problems = asyncio.run(work(Path(folder)))
    for problem in problems:
        _say(problem)
    num_clean = sum(not run.problems for run in runs)
    _say(f"{num_clean} of {len(runs)} seeds are clean")
    return num_clean == len(runs) and not problems


def page(options: argparse.Namespace) -> bool:
    write_page()
    return True


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
