"""Removing the background of images that clients send."""

import asyncio

from fastapi import Request, Response

from engine.contract.matte import MattingEvent
from server.http.item_run import ItemRun
from server.http.shape import encode
from server.matting.convert import (
    drop_files,
    encoded,
    matte_answer,
    matting_request,
    read_files,
)
from server.matting.served import SERVED_MATTING
from server.operations.exchange import Exchange, item_run
from server.operations.keeping import keeper
from server.protocol.matting import MatteRequest
from server.state import AppState


async def answer_matte(body: MatteRequest, request: Request, state: AppState) -> Response:
    """Answer with an image without its background, or with its matte.

    Raises:
        EngineError: the request is refused or fails.
    """
    exchange = await Exchange.begin(SERVED_MATTING, body, request, state)
    model = exchange.info.model
    run: ItemRun[MattingEvent] = item_run(exchange, "matte", fraction_of=_fraction)
    exchange.name(run)

    async def work() -> bytes:
        priority = exchange.priority
        files = await read_files(
            body,
            state.pictures,
            run,
            model=model,
            max_pixels=state.settings.max_image_input_pixels,
            priority=priority,
        )
        drop_files(body)
        order = matting_request(body, **files, request_id=run.id, model=model, priority=priority)
        del files
        num_pixels = order.image.width * order.image.height
        keep = keeper(body, request, state, num_pixels=num_pixels)
        [event] = await run.answers(order)
        del order  # decoded pictures need not wait for the file
        image = event.image
        assert image is not None
        file = await asyncio.to_thread(encoded, body, image)
        url = None if keep is None else keep(file)
        return await asyncio.to_thread(
            lambda: encode(
                matte_answer(body, event, image, request_id=run.id, model=model, file=file, url=url)
            )
        )

    return await exchange.answer(run, work())


def _fraction(event: MattingEvent) -> float:
    return event.progress
