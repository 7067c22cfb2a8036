"""The interface of a stage, in which an image is processed in steps.

Denoising is one kind of stage (`engine.diffusion.denoising`). The engine steps images in stages of
any kind side by side: all take turns, are cancelled, fail and are released in the same way.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, Self

from engine.contract.examination import Examined
from engine.contract.pixels import Pixels


class Stage(Protocol):
    """One image between two steps, with all its state, so that the image does not depend on what
    shares a call. All methods run without gradients on the engine's thread."""

    @property
    def name(self) -> str:
        """The name of the kind, such as `denoise`; metrics group times by it."""
        ...

    @property
    def group(self) -> Hashable:
        """A key: stages of one class with equal groups can share a call."""
        ...

    @property
    def num_rows(self) -> int:
        """The rows that it adds to the call of its next step."""
        ...

    @property
    def num_pixels(self) -> int:
        """The pixels of a row, to which its cost and its activations are proportional."""
        ...

    @property
    def num_steps(self) -> int:
        """The number of steps from first to last."""
        ...

    @property
    def step(self) -> int:
        """The number of finished steps."""
        ...

    def compute(self, stages: Sequence[Self]) -> Sequence[Any]:
        """Compute the next step of all `stages`, this one among them, in one call.

        Returns the outcome for each, in their order. Changes no stage: after a failure it is called
        again with fewer stages.
        """
        ...

    def advance(self, outcome: Any) -> None:
        """Take the step for which `compute` gave this outcome."""
        ...

    def result(self) -> Callable[[], Pixels | Examined]:
        """A function that makes the finished picture in another thread. It holds only what it
        needs."""
        ...

    def preview(self) -> Callable[[], Pixels] | None:
        """A function that makes a preview of the unfinished picture; None if there is nothing to
        show."""
        ...
