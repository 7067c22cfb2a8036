"""Drawing, editing and varying images."""

from functools import partial

from fastapi import Response

from engine.contract.draw import ImageModelInfo, ImageTask, combines_images
from server.http.admission import Lease
from server.http.engine_run import new_id
from server.images.convert import image_order
from server.images.files import check_sides
from server.images.inputs import ImageInputs, read_inputs
from server.images.metrics import ImageMetrics
from server.images.reply import ImageReply
from server.images.run import FileOptions, ImageRun
from server.images.served import SERVED_IMAGES
from server.images.task import choose_task
from server.operations.chain import background_after, begin_chain
from server.operations.exchange import Exchange
from server.operations.result_urls import url_keeper
from server.protocol.images import ImageFields, ImageInputFields
from server.state import ClientRequest

ImageExchange = Exchange[ImageModelInfo, ImageMetrics]


async def answer_images(
    body: ImageFields,
    client: ClientRequest,
    event_prefix: str,
) -> Response:
    """Answer with images, whole or as a stream.

    Args:
        event_prefix: `image_generation` or `image_edit`.

    Raises:
        EngineError: the request is refused, or fails before the first byte.
    """
    exchange = await Exchange.begin(SERVED_IMAGES, body, client)
    task = choose_task(body, exchange.info)
    combines = combines_images(task, exchange.info.references)
    run = image_run(exchange, _num_results(body, combines=combines))
    return await exchange.reply(run, partial(_draw, exchange, run, body, task, event_prefix))


def image_run(exchange: ImageExchange, num_images: int) -> ImageRun:
    """The run of a request for that many images; the answer's headers name it.

    Raises:
        Draining, QueueFull: as for `Exchange.admit`.
    """
    state, id = exchange.state, new_id("img")

    def create(lease: Lease) -> ImageRun:
        meter = exchange.metrics.meter(exchange.info.model)
        return ImageRun(id, state.engine, meter, lease, state.image_jobs)

    run = exchange.admit(num_images, create)
    exchange.name(run, num_images)
    return run


async def _draw(
    exchange: ImageExchange, run: ImageRun, body: ImageFields, task: ImageTask, event_prefix: str
) -> ImageReply:
    """Decode and convert a request, and send it to the engine."""
    state, info, settings = exchange.state, exchange.info, exchange.state.settings
    chain = await begin_chain(body, run, info, state, exchange.priority)
    inputs = ImageInputs()
    if isinstance(body, ImageInputFields):
        inputs = await read_inputs(
            body,
            state.pictures,
            run,
            max_pixels=settings.max_image_input_pixels,
            model=info.model,
            priority=exchange.priority,
        )
        # The files would wait in memory as long as the request does.
        body.images.clear()
    order = image_order(
        body, task, inputs, info, settings, request_id=run.id, priority=exchange.priority
    )
    exchange.log_prompts(prompt=order.request.prompt)
    params = order.request.params
    width, height = params.result_size
    if chain is not None:
        width, height = chain.plan(width, height, params.n)
        check_sides(body.file_format, width, height)
    keep = url_keeper(body, exchange, num_pixels=width * height, num_images=params.n)
    run.begin(order, chain)
    options = FileOptions(
        output_format=body.file_format,
        compression=body.file_quality,
        with_metadata=settings.image_metadata,
        background=background_after(body),
    )
    return ImageReply(
        run,
        options,
        event_prefix=event_prefix,
        block=info.size_multiple,
        inputs=[(image.width, image.height) for image in inputs.images],
        keep=keep,
        shape=exchange.shape,
    )


def _num_results(body: ImageFields, *, combines: bool) -> int:
    num_shares = len(body.images) if isinstance(body, ImageInputFields) and not combines else 1
    return (body.n or 1) * num_shares * body.num_settings
