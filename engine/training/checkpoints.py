"""Where a training stands, on disk: the adapter so far and the optimizer's state.

output/checkpoints/step-00000100/{adapter/, optimizer.pt}. Written beside and renamed, so that a
checkpoint is whole or not there; the ones before it go afterwards.
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
    """One that is whole."""

    folder: Path

    @property
    def step(self) -> int:
        """That was done last, counted from one."""
        return int(self.folder.name.removeprefix(_PREFIX))

    @property
    def adapter(self) -> Path:
        return self.folder / _ADAPTER

    def optimizer_state(self) -> dict[str, Any]:
        """
        Raises:
            CorruptFile: the file is damaged.
        """
        try:
            state: dict[str, Any] = torch.load(self.folder / _OPTIMIZER, weights_only=True)
        except Exception as error:  # whatever a damaged file does to the reader
            raise CorruptFile(
                f"the checkpoint of step {self.step} is damaged; delete it to go on from an "
                f"earlier one, or train without --resume"
            ) from error
        return state


class TrainingCheckpoints:
    """Those of one training.

    Args:
        output: its folder.
    """

    def __init__(self, output: Path) -> None:
        self._folder = output / "checkpoints"

    def last(self) -> TrainingCheckpoint | None:
        return max(self._all(), key=lambda checkpoint: checkpoint.step, default=None)

    def write(
        self, step: int, save: Callable[[Path], None], optimizer: torch.optim.Optimizer
    ) -> None:
        """Keep this one alone.

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
