"""An order to `tandem lora-train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import InvalidParameter

Task = Literal["text", "image"]
TASKS: tuple[Task, ...] = ("text", "image")
Optimizer = Literal["adamw", "sgd"]
Precision = Literal["float32", "bfloat16"]

MAX_RANK = 256
"""The highest rank that the server loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOrder:
    """An order to train an adapter.

    Attributes:
        model: a reference (`engine.weights.source`).
        data: a JSONL file for a text model, a folder of pictures with captions for an image model.
        output: the folder for everything that is written.
        alpha: the update is multiplied by `alpha / rank`.
        targets: the ends of the names of layers that get an update; empty: all usual ones.
        batch_size: the examples of a step.
        max_length: the tokens of a text; longer ones are cut.
        size: the width and height of pictures, which are cut to a square.
        caption_dropout: the share of pictures learned without their caption, which guidance needs.
        precision: the precision of the frozen weights. The adapter is always trained in float32.
        save_every, sample_every: numbers of steps; 0: only at the end, and never.
        sample_prompts: the prompts of samples.
        resume: whether to continue from the last checkpoint in `output`.
        offline: whether to use no network at all.
    """

    task: Task
    model: str
    data: Path
    output: Path
    rank: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = ()
    steps: int = 300
    batch_size: int = 4
    learning_rate: float = 2e-4
    optimizer: Optimizer = "adamw"
    precision: Precision = "float32"
    max_length: int = 256
    size: int = 64
    caption_dropout: float = 0.1
    seed: int = 0
    save_every: int = 100
    sample_every: int = 0
    sample_prompts: tuple[str, ...] = ()
    resume: bool = False
    offline: bool = False
    cache_dir: Path = Path("~/.cache/tandem")

    def check(self) -> None:
        """Check the numbers.

        Raises:
            InvalidParameter: a number is out of bounds; the message gives them.
        """
        limits = {
            "rank": (self.rank, 1, MAX_RANK),
            "steps": (self.steps, 1, 1_000_000),
            "batch_size": (self.batch_size, 1, 1024),
            "max_length": (self.max_length, 2, 131_072),
            "size": (self.size, 8, 4096),
            "caption_dropout": (self.caption_dropout, 0.0, 1.0),
            "learning_rate": (self.learning_rate, 1e-9, 10.0),
            "alpha": (self.alpha, 1e-6, 1e6),
            "save_every": (self.save_every, 0, 1_000_000),
            "sample_every": (self.sample_every, 0, 1_000_000),
        }
        for name, (value, least, most) in limits.items():
            if not least <= value <= most:  # also true of NaN
                raise InvalidParameter(
                    f"{name} is {value}; it must be {least} to {most}", param=name
                )
        if self.size % 8:
            raise InvalidParameter(f"size is {self.size}; it must be a multiple of 8", param="size")
        if self.sample_every and not self.sample_prompts:
            raise InvalidParameter(
                "samples need a prompt; give --sample-prompt", param="sample_every"
            )
