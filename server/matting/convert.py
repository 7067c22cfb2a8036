"""Converts a body to the engine's request, and its event to the answer."""

import time

from engine.contract.matte import MattingEvent, MattingOutput, MattingRequest, Point
from engine.contract.pixels import Pixels
from server.http.engine_run import EngineRun
from server.images.files import base64_text, encode_image
from server.images.picture_wire import Reading
from server.images.pictures import Pictures
from server.protocol.matting import MatteAnswer, MatteData, MatteFields, MatteRequest


async def read_files(
    body: MatteRequest,
    pictures: Pictures,
    run: EngineRun,
    *,
    model: str,
    max_pixels: int,
    priority: int,
) -> dict[str, Pixels]:
    """Decode all pictures, once there is memory for them. Returns them by the names of their
    fields.

    Args:
        max_pixels: limit of each picture.

    Raises:
        InvalidParameter: a file cannot be used.
        UnsupportedFeature: a link or a file id.
    """
    readings = {
        "image": (body.image, Reading.IMAGE),
        "trimap": (body.trimap, Reading.GREY),
        "background_image": (body.background_image, Reading.IMAGE),
    }
    files = [
        await pictures.open(reference, param, max_pixels=max_pixels, reading=reading)
        for param, (reference, reading) in readings.items()
        if reference is not None
    ]
    decoded = await pictures.decode(files, run, model, priority)
    return dict(zip([file.param for file in files], decoded, strict=True))


def matting_request(
    body: MatteFields,
    image: Pixels,
    *,
    request_id: str,
    model: str,
    priority: int,
    trimap: Pixels | None = None,
    background_image: Pixels | None = None,
) -> MattingRequest:
    """The engine's request."""
    return MattingRequest(
        request_id=request_id,
        model=model,
        image=image,
        trimap=trimap,
        box=None if body.box is None else (body.box[0], body.box[1], body.box[2], body.box[3]),
        points=[Point(x=p.x, y=p.y, is_subject=p.label == 1) for p in body.points or []],
        output=MattingOutput(body.result),
        colour=body.colour,
        background=background_image,
        priority=priority,
        arrival_time_s=time.time(),
    )


def encoded(body: MatteRequest, image: Pixels) -> bytes:
    """The result's file. Blocking: call it in a thread."""
    return encode_image(image, body.file_format, body.file_quality, background=body.colour)


def matte_answer(
    body: MatteRequest,
    event: MattingEvent,
    image: Pixels,
    *,
    request_id: str,
    model: str,
    file: bytes,
    url: str | None,
) -> MatteAnswer:
    """The answer, with the file in it unless it has a url. Blocking: call it in a thread."""
    is_cutout = body.result == "cutout" and body.output_format != "jpeg"
    return MatteAnswer(
        created=int(time.time()),
        data=[MatteData(b64_json=None if url else base64_text(file), url=url)],
        background="transparent" if is_cutout else "opaque",
        output_format=body.file_format,
        size=f"{image.width}x{image.height}",
        id=request_id,
        model=model,
        output=body.result,
        source="network" if body.trimap is None else "trimap",
        unknown_fraction=round(event.unknown_fraction, 6),
        uncertain_fraction=round(event.uncertain_fraction, 6),
        solved_size=_size(event.width, event.height),
        foreground_size=_size(event.foreground_width, event.foreground_height),
        warnings=list(event.warnings),
    )


def _size(width: int, height: int) -> str | None:
    return f"{width}x{height}" if width else None
