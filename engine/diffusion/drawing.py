"""One image in progress, through all its stages."""

import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

from engine.contract.draw import ImageRequest
from engine.contract.pixels import Pixels
from engine.diffusion.hires import Redrawing
from engine.diffusion.prompt_cache import Lookups
from engine.diffusion.stage import Stage

_next_id = itertools.count().__next__


@dataclass(slots=True, kw_only=True, eq=False)
class Drawing:
    """Image `index` of a request.

    Attributes:
        stage: the current stage with its progress.
        next_pass: the pass that follows; None if this is the last.
        num_steps_before: the number of steps of earlier stages.
        stage_time_s: the time of the calls that it took part in.
        preview_steps: the step of each preview, by the preview's index.
    """

    request: ImageRequest
    index: int
    seed: int
    stage: Stage
    next_pass: Redrawing | None = None
    num_steps_before: int = 0
    num_prompt_tokens: int = 0
    warnings: tuple[str, ...] = ()
    encode_time_s: float = 0.0
    stage_time_s: float = 0.0
    preview_steps: list[int] = field(default_factory=list)
    drawing_id: int = field(default_factory=_next_id)

    @property
    def finished(self) -> bool:
        """Whether the stage has taken its last step."""
        return self.stage.step >= self.stage.num_steps

    @property
    def step(self) -> int:
        """The number of finished steps of all stages."""
        return self.num_steps_before + self.stage.step

    @property
    def num_steps(self) -> int:
        """The number of steps of all stages."""
        to_come = self.next_pass.num_steps if self.next_pass is not None else 0
        return self.num_steps_before + self.stage.num_steps + to_come

    def go_on(self, picture: Pixels | None) -> None:
        """Begin the next pass, which must exist.

        Args:
            picture: the decoded picture of the stage, if the pass needs it.
        """
        assert self.next_pass is not None
        stage = self.next_pass.begin(self.stage, picture)
        self.num_steps_before += self.stage.num_steps
        self.stage, self.next_pass = stage, None

    @property
    def group(self) -> Hashable:
        """Drawings of equal group can share a call."""
        return (type(self.stage), self.stage.group)

    def preview_due(self) -> bool:
        """Whether the step just taken is one of the equally spaced ones with a preview."""
        wanted = self.request.params.num_previews
        num_shown = len(self.preview_steps)
        if num_shown >= wanted or self.finished:
            return False
        return self.step * (wanted + 1) >= (num_shown + 1) * self.num_steps


class DrawingSource(Protocol):
    """Turns a model's requests into drawings."""

    @property
    def lookups(self) -> Lookups:
        """How often prompts were looked up in a cache; zero if there is none."""
        ...

    def create(self, request: ImageRequest) -> list[Drawing]:
        """Make one drawing per image of the request, each before its first step.

        Raises:
            InvalidParameter: the request does not fit the model or contradicts itself.
        """
        ...
