"""One image being made, whatever is done to it."""

import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

from engine.diffusion.prompt_cache import Lookups
from engine.diffusion.stage import Stage
from engine.image_types import ImageRequest

_next_id = itertools.count().__next__


@dataclass(slots=True, kw_only=True, eq=False)
class Drawing:
    """Image `index` of a request.

    Attributes:
        stage: what is done to it, and how far that is.
        stage_time_s: of the calls that it took part in.
        preview_steps: the step at each preview that was taken; a preview's index is its place here.
    """

    request: ImageRequest
    index: int
    seed: int
    stage: Stage
    num_prompt_tokens: int = 0
    warnings: tuple[str, ...] = ()
    encode_time_s: float = 0.0
    stage_time_s: float = 0.0
    preview_steps: list[int] = field(default_factory=list)
    drawing_id: int = field(default_factory=_next_id)

    @property
    def finished(self) -> bool:
        return self.stage.step >= self.stage.num_steps

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
        return self.stage.step * (wanted + 1) >= (num_shown + 1) * self.stage.num_steps


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
