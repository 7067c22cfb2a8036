"""The engine's side of one matting request: `MatteRun`."""

from dataclasses import replace

from engine.contract.matte import MattingEvent, MattingRequest
from engine.contract.request import Event
from server.http.item_run import ItemRun
from server.http.live_requests import Progress


class MatteRun(ItemRun):
    """One matting request, of one picture."""

    _fraction = 0.0

    async def answer(self, request: MattingRequest) -> MattingEvent:
        """Send the request to the engine and wait for its result.

        Raises:
            EngineError: as `answers` does.
        """
        [event] = await self.answers(request)
        return event

    def progress(self) -> Progress:
        return replace(super().progress(), fraction=self._fraction)

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event, MattingEvent):
            self._fraction = max(self._fraction, event.progress)
