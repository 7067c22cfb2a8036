"""One image being made, whatever is done to it."""

import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

from engine.diffusion.prompt_cache import Lookups
from engine.diffusion.stage import Stage
from engine.image_types import ImageRequest, Pixels

_next_id = itertools.count().__next__


class NextPass(Protocol):
    """What goes on with what a stage has drawn, in a stage of its own."""

    @property
    def num_steps(self) -> int:
        """Of that stage."""
        ...

    @property
    def needs_picture(self) -> bool:
        """Whether it begins with the decoded picture."""
        ...

    def begin(self, stage: Stage, picture: Pixels | None) -> Stage:
        """The stage before its first step, from the one before after its last."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class Drawing:
    """Image `index` of a request.

    Attributes:
        stage: what is done to it, and how far that is.
        next_pass: what follows on that; None: it is the last.
        num_steps_before: of the stages before it.
        stage_time_s: of the calls that it took part in.
        preview_steps: the step at each preview that was taken; a preview's index is its place here.
    """

    request: ImageRequest
    index: int
    seed: int
    stage: Stage
    next_pass: NextPass | None = None
    num_steps_before: int = 0
    num_prompt_tokens: int = 0
    warnings: tuple[str, ...] = ()
    encode_time_s: float = 0.0
    stage_time_s: float = 0.0
    preview_steps: list[int] = field(default_factory=list)
    drawing_id: int = field(default_factory=_next_id)

    @property
    def finished(self) -> bool:
        """Whether its stage has taken its last step."""
        return self.stage.step >= self.stage.num_steps

    @property
    def step(self) -> int:
        """Steps done, of all stages."""
        return self.num_steps_before + self.stage.step

    @property
    def num_steps(self) -> int:
        """Of all stages."""
        to_come = self.next_pass.num_steps if self.next_pass is not None else 0
        return self.num_steps_before + self.stage.num_steps + to_come

    def go_on(self, picture: Pixels | None) -> None:
        """Begin the next pass, which there is.

        Args:
            picture: what the stage has drawn, where that is needed.
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
        """Whether the step just taken is one of the equally spaced ones that are shown."""
        wanted = self.request.params.num_previews
        num_shown = len(self.preview_steps)
        if num_shown >= wanted or self.finished:
            return False
        return self.step * (wanted + 1) >= (num_shown + 1) * self.num_steps


class DrawingSource(Protocol):
    """What a model's requests become drawings by."""

    @property
    def lookups(self) -> Lookups:
        """Of prompts in a cache; zero where none are read."""
        ...

    def create(self, request: ImageRequest) -> list[Drawing]:
        """One drawing per image of the request, each before its first step.

        Raises:
            InvalidParameter: the request does not fit the model or itself.
        """
        ...
