"""Enlarging images, by models made for it or by models that draw."""

from functools import partial

from fastapi import Request, Response

from engine.contract.enlarge import UpscaleEvent, UpscaleModelInfo
from server.http.item_metrics import ItemMetrics
from server.http.item_run import ItemRun
from server.http.shape import Shape
from server.images.convert import ImageLimits
from server.images.kind import SERVED_IMAGES
from server.images.run import ImageRun
from server.operations.draw import ImageExchange, image_run
from server.operations.exchange import Exchange, item_run
from server.operations.keeping import keeper
from server.protocol.common import RequestBody
from server.protocol.upscaling import UpscaleFacts, UpscaleImageRequest
from server.state import AppState
from server.upscaling.convert import (
    Tiling,
    UpscaleLimits,
    read_image,
    scale_of,
    tiling,
    upscale_request,
)
from server.upscaling.drawing import drawing_model, drawing_order, read_small, upscale_events
from server.upscaling.kind import SERVED_UPSCALING
from server.upscaling.reply import UpscaleReply
from server.upscaling.result import ResultFile


async def answer_upscaling(
    body: UpscaleImageRequest,
    request: Request,
    state: AppState,
    *,
    sent: RequestBody | None = None,
    shape: Shape | None = None,
) -> Response:
    """Like `server.operations.draw.answer_images`, for an image to enlarge."""
    drawing = drawing_model(state.engine, body.model)
    if drawing is not None:
        drawn = await Exchange.begin(
            SERVED_IMAGES, body, request, state, info=drawing, sent=sent, shape=shape
        )
        images = image_run(drawn, 1)
        return await drawn.reply(images, partial(_draw, drawn, images, body))
    exchange = await Exchange.begin(SERVED_UPSCALING, body, request, state, sent=sent, shape=shape)
    scale, cut = scale_of(body, exchange.info), tiling(body, exchange.info)
    run = item_run(exchange, "upscale", fraction_of=_fraction)
    exchange.name(run)
    return await exchange.reply(run, partial(_enlarge, exchange, run, body, scale, cut))


def _fraction(event: UpscaleEvent) -> float:
    return round(event.tile / event.num_tiles, 4)


async def _enlarge(
    exchange: Exchange[UpscaleModelInfo, ItemMetrics],
    run: ItemRun[UpscaleEvent],
    body: UpscaleImageRequest,
    scale: float,
    cut: Tiling,
) -> UpscaleReply:
    """Decode and convert a request, and send it to the engine."""
    limits = UpscaleLimits.of(exchange.state.settings)
    image = await read_image(
        body, exchange.info, limits, exchange.state.pictures, run, exchange.priority
    )
    order = upscale_request(
        body, image, exchange.info, cut, request_id=run.id, priority=exchange.priority
    )
    facts = UpscaleFacts(
        id=run.id,
        model=order.model,
        size=f"{order.width}x{order.height}",
        scale=scale,
        tile=order.tile,
        overlap=order.overlap,
        exact=order.exact,
        num_tiles=0,
        consistency=None,
    )
    file = ResultFile.of(body, order.width, order.height, image.channels)
    keep = keeper(body, exchange.request, exchange.state, num_pixels=order.width * order.height)
    run.submit(order)
    return UpscaleReply(run, run.events, facts, file, keep, exchange.shape)


async def _draw(exchange: ImageExchange, run: ImageRun, body: UpscaleImageRequest) -> UpscaleReply:
    """Like `_enlarge`, with a model that draws."""
    state, info = exchange.state, exchange.info
    limits = UpscaleLimits.of(state.settings)
    image, scale = await read_small(body, info, limits, state.pictures, run, exchange.priority)
    order = drawing_order(
        body,
        image,
        scale,
        info,
        ImageLimits.of(state.settings),
        request_id=run.id,
        priority=exchange.priority,
    )
    params = order.request.params
    exchange.log_prompts(prompt=order.request.prompt)
    facts = UpscaleFacts(
        id=run.id,
        model=order.request.model,
        size=f"{params.width}x{params.height}",
        scale=scale,
        tile=0,
        overlap=0,
        exact=False,
        num_tiles=0,
        consistency=None,
        seed=params.seed,
    )
    file = ResultFile.of(body, params.width, params.height, image.channels)
    keep = keeper(body, exchange.request, state, num_pixels=params.width * params.height)
    run.begin(order)
    return UpscaleReply(run, partial(upscale_events, run), facts, file, keep, exchange.shape)
