"""Enlarging images, by models made for it or by models that draw."""

from functools import partial
from typing import Any

from fastapi import Response

from engine.contract.operations import DRAW
from server.images.files import check_sides
from server.images.served import SERVED_IMAGES
from server.operations.draw import image_run
from server.operations.exchange import Exchange, item_run
from server.operations.result_urls import url_keeper
from server.protocol.upscaling import UpscaleFacts, UpscaleImageRequest
from server.state import ClientRequest
from server.upscaling.convert import TiledEnlarging, fraction_of
from server.upscaling.drawing import DrawnEnlarging, Enlarging, drawing_model
from server.upscaling.reply import UpscaleReply
from server.upscaling.result import ResultFile
from server.upscaling.served import SERVED_UPSCALING


async def answer_upscaling(
    body: UpscaleImageRequest,
    client: ClientRequest,
) -> Response:
    """Like `server.operations.draw.answer_images`, for an image to enlarge."""
    state = client.state
    await client.wake(DRAW, body.model)
    drawing = drawing_model(state.engine, body.model)
    if drawing is not None:
        drawn = await Exchange.begin(SERVED_IMAGES, body, client, drawing)
        by_drawing = DrawnEnlarging(body, drawing, state.settings)
        drawn.log_prompts(prompt=body.prompt or "")
        images = image_run(drawn, 1)
        return await drawn.reply(images, partial(_enlarge, drawn, images, body, by_drawing))
    exchange = await Exchange.begin(SERVED_UPSCALING, body, client)
    tiled = TiledEnlarging(body, exchange.info, state.settings)
    run = item_run(exchange, "upscale", fraction_of=fraction_of)
    exchange.name(run)
    return await exchange.reply(run, partial(_enlarge, exchange, run, body, tiled))


async def _enlarge(
    exchange: Exchange[Any, Any],
    run: Any,
    body: UpscaleImageRequest,
    enlarging: Enlarging,
) -> UpscaleReply:
    """Decode the image, if its result is within the limits, and send it to the engine."""
    pictures, priority = exchange.state.pictures, exchange.priority
    most = exchange.state.settings.max_image_input_pixels
    file = await pictures.open(body.image, "image", max_pixels=most)
    width, height = enlarging.size(file.width, file.height)
    check_sides(body.file_format, width, height)
    [image] = await pictures.decode([file], run, exchange.info.model, priority)
    body.drop_files()
    facts = UpscaleFacts(
        id=run.id,
        model=exchange.info.model,
        size=f"{width}x{height}",
        scale=enlarging.scale,
        num_tiles=0,
        consistency=None,
        **enlarging.facts(),
    )
    result = ResultFile.of(body, width, height, image.channels)
    keep = url_keeper(body, exchange, num_pixels=width * height)
    enlarging.begin(run, image, priority)
    return UpscaleReply(run, partial(enlarging.events, run), facts, result, keep, exchange.shape)
