"""What is done to an image in steps, as far as the engine has to know it.

Denoising is one kind of stage (`engine.diffusion.denoising`). The engine steps images in stages of
any kind side by side: each has its turns, is cancelled, fails and is released in the same way.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, Self

from engine.image_types import Examined, Pixels


class Stage(Protocol):
    """One image between two steps: all its state, so that nothing of it depends on what shares a
    call. All methods run without gradients on the engine's thread."""

    @property
    def name(self) -> str:
        """Of its kind, such as `denoise`; metrics tell times by it."""
        ...

    @property
    def group(self) -> Hashable:
        """Stages of one class and equal group can share a call."""
        ...

    @property
    def num_rows(self) -> int:
        """What it brings to the call of its next step."""
        ...

    @property
    def num_pixels(self) -> int:
        """Of a row: what its cost and its activations grow with."""
        ...

    @property
    def num_steps(self) -> int:
        """From its first step to its last."""
        ...

    @property
    def step(self) -> int:
        """Steps done."""
        ...

    def compute(self, stages: Sequence[Self]) -> Sequence[Any]:
        """One call for the next step of all `stages`, which can share it and this one is among.

        Returns what it gives to each, in their order. Changes none of them: if it fails, it is
        tried again for fewer.
        """
        ...

    def advance(self, outcome: Any) -> None:
        """Take the step to which `compute` gave that."""
        ...

    def result(self) -> Callable[[], Pixels | Examined]:
        """What makes the finished picture, in another thread. It holds no more than it needs."""
        ...

    def preview(self) -> Callable[[], Pixels] | None:
        """The same of the unfinished picture; None: there is nothing to show."""
        ...
