"""Runs `engine.worker.loop` with a watch over its work between two steps. Started as a program."""

import runpy
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import engine.processes.pulse
from tests.helpers.stalls import watch_loaded

_NOT_INSTALLED = ("bitsandbytes", "peft", "torchvision")
"""Packages of tests only, which other libraries would import: an image worker takes a second more
to start."""
_BETWEEN_STEPS = {
    "__main__.Loop": ("_submit", "_change_adapter", "_publish"),
    "engine.llm.engine.LLMEngine": ("abort", "_admit_prepared", "_advance_adapters"),
    "engine.llm.scheduler.Scheduler": ("schedule", "commit", "stats"),
    "engine.llm.structure.mask.StructureMask": ("add", "edit", "advance", "forced"),
    "engine.llm.sampling.sampler.Sampler": ("add",),
}


def watch_worker() -> None:
    """Watch the loop once the model is loaded and the loop begins."""
    send_pulses = engine.processes.pulse.send_pulses

    def begin(*args: Any, **options: Any) -> None:
        loop = sys.modules["__main__"].Loop
        run = loop.run

        def watched_run(self: Any) -> None:
            watch_loaded("worker", _BETWEEN_STEPS)
            run(self)

        loop.run = watched_run
        send_pulses(*args, **options)

    engine.processes.pulse.send_pulses = begin


if __name__ == "__main__":
    sys.modules.update(dict.fromkeys(_NOT_INSTALLED))  # type: ignore[arg-type]
    watch_worker()
    runpy.run_module("engine.worker.loop", run_name="__main__", alter_sys=True)
