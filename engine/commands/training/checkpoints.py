"""Keeps the state of a training on disk: the adapter so far and the optimizer's state.

The files are output/checkpoints/step-00000100/{adapter/, optimizer.pt}. They are written elsewhere
and renamed, so that a checkpoint is complete or absent; earlier ones are then deleted.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import CorruptFile

_PREFIX = "step-"
_ADAPTER = "adapter"
_OPTIMIZER = "optimizer.pt"


@dataclass(frozen=True, slots=True)
class TrainingCheckpoint:
    """A complete checkpoint."""

    folder: Path

    @property
    def step(self) -> int:
        """The number of finished steps."""
        return int(self.folder.name.removeprefix(_PREFIX))

    @property
    def adapter(self) -> Path:
        return self.folder / _ADAPTER

    def optimizer_state(self) -> dict[str, Any]:
        """Load the optimizer's state.

        Raises:
            CorruptFile: the file is damaged.
        """
        try:
            state: dict[str, Any] = torch.load(self.folder / _OPTIMIZER, weights_only=True)
        except Exception as error:  # a damaged file can make the reader fail in many ways
            raise CorruptFile(
                f"the checkpoint of step {self.step} is damaged; delete it to resume from an "
                f"earlier one, or train without --resume"
            ) from error
        return state


class TrainingCheckpoints:
    """The checkpoints of one training.

    Args:
        output: the training's folder.
    """

    def __init__(self, output: Path) -> None:
        self._folder = output / "checkpoints"

    def last(self) -> TrainingCheckpoint | None:
        return max(self._all(), key=lambda checkpoint: checkpoint.step, default=None)

    def write(
        self, step: int, save: Callable[[Path], None], optimizer: torch.optim.Optimizer
    ) -> None:
        """Write a checkpoint and delete all others.

        Args:
            save: writes the adapter into a folder.
        """
        before = self._all()
        unfinished = self._folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save(unfinished / _ADAPTER)
        torch.save(optimizer.state_dict(), unfinished / _OPTIMIZER)
        place = self._folder / f"{_PREFIX}{step:08d}"
        shutil.rmtree(place, ignore_errors=True)
        unfinished.rename(place)
        for checkpoint in before:
            if checkpoint.folder != place:
                shutil.rmtree(checkpoint.folder)

    def _all(self) -> list[TrainingCheckpoint]:
        folders = self._folder.glob(f"{_PREFIX}*")
        return [
            TrainingCheckpoint(folder)
            for folder in folders
            if folder.name.removeprefix(_PREFIX).isdecimal()
        ]
