"""What `tandem lora-train` is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import InvalidParameter

Task = Literal["text", "image"]
TASKS: tuple[Task, ...] = ("text", "image")
Optimizer = Literal["adamw", "sgd"]
Precision = Literal["float32", "bfloat16"]

MAX_RANK = 256
"""What the server loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOrder:
    """An adapter to be trained.

    Attributes:
        model: a reference (`engine.weights.source`).
        data: of a text model a JSONL file, of an image model a folder of pictures with captions.
        output: the folder that everything is written to.
        alpha: the update counts `alpha / rank` times.
        targets: ends of the names of layers that get an update; empty: all that are usual.
        batch_size: examples of a step.
        max_length: tokens of a text; what is longer is cut.
        size: width and height of pictures, which are cut to a square.
        caption_dropout: so often an image learns without its caption, which guidance needs.
        precision: of the frozen weights. The adapter itself is always trained in float32.
        save_every, sample_every: steps; 0: at the end only, and never.
        sample_prompts: what samples are made of.
        resume: go on from the last checkpoint in `output`.
        offline: never touch the network.
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
        """
        Raises:
            InvalidParameter: a number makes no sense; the message says which do.
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
            if not least <= value <= most:  # neither is NaN
                raise InvalidParameter(f"{name} is {value}; give {least} to {most}", param=name)
        if self.size % 8:
            raise InvalidParameter(f"size is {self.size}; give a multiple of 8", param="size")
        if self.sample_every and not self.sample_prompts:
            raise InvalidParameter(
                "samples are asked for, but of nothing; give --sample-prompt", param="sample_every"
            )
