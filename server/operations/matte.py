"""Removing the background of images that clients send."""

import asyncio

from fastapi import Response

from engine.contract.matte import MattingEvent
from server.http.item_run import ItemRun
from server.http.shape import encode
from server.matting.convert import (
    encoded,
    matte_answer,
    matting_request,
    read_files,
)
from server.matting.served import SERVED_MATTING
from server.operations.exchange import Exchange, item_run
from server.operations.result_urls import url_keeper
from server.protocol.matting import MatteRequest
from server.state import ClientRequest


async def answer_matte(body: MatteRequest, client: ClientRequest) -> Response:
    """Answer with an image without its background, or with its matte.

    Raises:
        EngineError: the request is refused or fails.
    """
    exchange = await Exchange.begin(SERVED_MATTING, body, client)
    state, model = exchange.state, exchange.info.model
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
        body.drop_files()
        order = matting_request(body, **files, request_id=run.id, model=model, priority=priority)
        del files
        num_pixels = order.image.width * order.image.height
        keep = url_keeper(body, exchange, num_pixels=num_pixels)
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
