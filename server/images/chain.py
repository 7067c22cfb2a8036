"""What a request does with each picture after it is drawn, stage by stage: `Chain`.

A stage is one operation by one model, such as `{"operation": "enlarge"}` in a body's `then`.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from engine.contract.draw import ImageEvent
from engine.contract.pixels import Pixels
from engine.contract.request import Info
from server.http.engine_run import EngineRun, cancelled
from server.http.item_run import ItemRun
from server.images.jobs import StageEvent
from server.images.limits import Size
from server.images.made_with import changed_since, made_with
from server.images.picture_budget import PictureBudget, PictureShare
from server.protocol.chain import FILE_FIELDS, EnlargeStage, MatteStage, within_stage

_CHANNELS = 4
"""The most channels of a picture."""


@dataclass(kw_only=True)
class Stage(ABC):
    """One operation on one picture after another.

    Attributes:
        number: its number; the drawing is 0.
        is_told: whether the client asked for this stage, and so gets its progress and settings.
    """

    number: int
    is_told: bool
    priority: int
    info: Info
    fields: EnlargeStage | MatteStage

    @abstractmethod
    def size(self, width: int, height: int, num_images: int) -> Size:
        """The size of this stage's results.

        Raises:
            InvalidParameter: pictures of that size are too large for it.
        """

    @abstractmethod
    def run(self) -> ItemRun[Any]:
        """A run for one picture."""

    @abstractmethod
    def follow(self, run: Any, picture: Pixels, index: int) -> AsyncGenerator[StageEvent, None]:
        """Send a picture to the engine. The last event has the result.

        Raises:
            EngineError: the engine failed.
        """

    def chosen(self, index: int) -> dict[str, Any]:
        """Fields that the server chose if the request did not, for the image of that number."""
        return {}

    def settings(self, index: int) -> dict[str, Any]:
        """The fields that ask for this stage again, for the image of that number alone."""
        own = {"operation", "model", "made_with", "partial_images", *FILE_FIELDS}
        names = type(self.fields).model_fields.keys() - own
        found = {"operation": self.fields.operation, "model": self.info.name}
        found |= self.fields.model_dump(include=names, exclude_none=True) | self.chosen(index)
        return found | ({"made_with": files} if (files := made_with(self.info)) else {})

    @property
    def place(self) -> int | None:
        """Its place in `then`, for errors; None if it is not there."""
        return self.number - 1 if self.is_told else None

    def event(self, index: int, **facts: Any) -> StageEvent:
        """An event of this stage about the image of that number."""
        operation = self.fields.operation
        return StageEvent(
            request_id="", index=index, operation=operation, number=self.number, **facts
        )


class Chain:
    """The stages of one request after the drawing. Pictures go through them one after another,
    while the model goes on drawing others.

    Args:
        memory: gives memory for the pictures between two stages.
    """

    def __init__(self, stages: Sequence[Stage], memory: PictureBudget) -> None:
        self.stages = [stage for stage in stages if stage.is_told]
        """The stages that the client asked for."""
        self._all_stages = stages
        self._memory = memory
        self._share: PictureShare | None = None
        self._num_bytes = 0
        self._running: ItemRun[Any] | None = None
        self._is_cancelled = False

    def plan(self, width: int, height: int, num_images: int) -> Size:
        """The size of the finished pictures.

        Args:
            width, height: size of the drawn pictures.

        Raises:
            InvalidParameter: a picture would be too large, or too much work.
        """
        for stage in self._all_stages:
            with within_stage(stage.place):
                num_before = width * height
                width, height = stage.size(width, height, num_images)
                num_bytes = _CHANNELS * (num_before + width * height)
                self._memory.check(num_bytes)
                self._num_bytes = max(self._num_bytes, num_bytes)
        return width, height

    def settings(self, index: int) -> list[dict[str, Any]]:
        """`then` of a request that makes the image of that number again."""
        return [stage.settings(index) for stage in self.stages]

    async def follow(self, event: ImageEvent, owner: EngineRun) -> AsyncGenerator[ImageEvent, None]:
        """Send a drawn picture through the stages. Yields the events of stages that the client
        asked for, then the last event of the drawing, with the finished picture.

        Args:
            owner: the run of the request.

        Raises:
            EngineError: a stage failed; the error names it.
        """
        assert event.image is not None
        picture, warnings = event.image, [*event.warnings, *self._changed()]
        await owner.perform(self._take_memory())
        for stage in self._all_stages:
            with within_stage(stage.place):
                async with aclosing(self._through(stage, picture, event.index)) as parts:
                    async for part in parts:
                        if part.image is not None:
                            picture = part.image
                            warnings += part.warnings
                        if stage.is_told and part.num_steps:
                            yield replace(part, image=None)
        yield replace(event, image=picture, warnings=tuple(warnings))

    async def cancel(self) -> None:
        """End the stage that runs. Idempotent."""
        self._is_cancelled = True
        if self._running is not None:
            await self._running.cancel()

    def release(self) -> None:
        """Give memory back. Idempotent."""
        if self._share is not None:
            self._share.release()

    async def _through(
        self, stage: Stage, picture: Pixels, index: int
    ) -> AsyncGenerator[StageEvent, None]:
        if self._is_cancelled:
            raise cancelled()
        self._running = run = stage.run()
        try:
            async with aclosing(run), aclosing(stage.follow(run, picture, index)) as parts:
                async for part in parts:
                    yield part
        finally:
            self._running = None

    async def _take_memory(self) -> None:
        self.release()  # the picture before this one has become a file
        first = self._all_stages[0]
        self._share = await self._memory.take(first.info.model, self._num_bytes, first.priority)

    def _changed(self) -> list[str]:
        """Warnings about models that have other files than the request names."""
        asked = [(stage.fields.made_with, stage.info) for stage in self._all_stages]
        return [text for then, info in asked if then for text in changed_since(then, info)]
