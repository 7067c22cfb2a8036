"""What an engine must offer to be stepped by a worker's loop or by a thread."""

from typing import Protocol, TypeVar

from engine.image_types import ImageEvent, ImageRequest, ImageStats
from engine.types import EngineStats, GenerateRequest, TokenEvent

Request = TypeVar("Request", bound=GenerateRequest | ImageRequest, contravariant=True)
Event = TypeVar("Event", bound=TokenEvent | ImageEvent)
Stats = TypeVar("Stats", bound=EngineStats | ImageStats, covariant=True)


class SteppingEngine(Protocol[Request, Event, Stats]):
    """All calls come from the thread that owns the device."""

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError or CapacityError when it cannot be taken."""
        ...

    def abort(self, request_id: str) -> None:
        """Drop a request at once; unknown ids are ignored."""
        ...

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def step(self) -> tuple[list[Event], Stats]:
        """Run one iteration over everything that is due."""
        ...

    def stats(self) -> Stats:
        """Statistics as of now."""
        ...

    def shutdown(self) -> None:
        """End threads and give the device's memory back."""
        ...


TextEngine = SteppingEngine[GenerateRequest, TokenEvent, EngineStats]
"""`engine.llm.engine.LLMEngine` is one."""
ImageEngine = SteppingEngine[ImageRequest, ImageEvent, ImageStats]
"""`engine.diffusion.engine.DiffusionEngine` is one."""
AnyEngine = TextEngine | ImageEngine
