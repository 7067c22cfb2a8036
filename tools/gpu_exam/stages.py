"""The stages of the exam, in order."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage, whose function is called by its own processes only."""

    text: str
    path: str
    """`module:function` in this package."""
    seconds: int
    """When it stops; the rest is for another run. Below eight minutes with the last case."""
    most_processes: int = 1

    def function(self) -> Callable[..., Any]:
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(f"tools.gpu_exam.{module}"), name)


STAGES = {
    "kernels": Stage(
        "every Triton kernel against its reference, and against itself",
        "kernel_cases:examine",
        400,
        most_processes=8,
    ),
    "sanitizer": Stage(
        "races and reads outside, by compute-sanitizer", "kernel_cases:examine_by_sanitizer", 200
    ),
    "targets": Stage("times as shares of the measured rates", "targets:examine", 400),
    "engine": Stage("texts of the whole engine", "texts:examine", 400, most_processes=4),
    "decode": Stage("decoding with random weights of 8 B", "large_decode:examine", 400),
    "images": Stage("images, if diffusers is installed", "images:examine", 400),
}
BROKEN = "broken"
"""The last stage, which collects what failed in the others."""
