"""From a body to the engine's request, and from its event to the answer."""

import base64
import time
import uuid

from engine.image_types import Pixels
from engine.matting_types import (
    MattingEvent,
    MattingMethod,
    MattingOutput,
    MattingRequest,
    Point,
)
from server.images.files import decode_grey, decode_image, encode_image
from server.images.inputs import MAX_INPUT_SIDE, file_of
from server.protocol.image_inputs import UploadedImage
from server.protocol.matting import MatteAnswer, MatteData, MatteRequest


def new_matte_id() -> str:
    """Of a request and its answer."""
    return f"matte-{uuid.uuid4().hex}"


def matting_request(
    body: MatteRequest, *, request_id: str, model: str, max_pixels: int, priority: int
) -> MattingRequest:
    """Decode everything. Blocking: call it in a thread.

    Args:
        max_pixels: of each picture.

    Raises:
        InvalidParameter: a file cannot be used.
        UnsupportedFeature: a link or a file id.
    """
    image = decode_image(
        file_of(body.image, "image"),
        param="image",
        max_pixels=max_pixels,
        max_side=MAX_INPUT_SIDE,
    )
    trimap = background = None
    if body.trimap is not None:
        trimap = decode_grey(
            file_of(body.trimap, "trimap"),
            param="trimap",
            max_pixels=max_pixels,
            max_side=MAX_INPUT_SIDE,
        )
    if body.background_image is not None:
        background = decode_image(
            file_of(body.background_image, "background_image"),
            param="background_image",
            max_pixels=max_pixels,
            max_side=MAX_INPUT_SIDE,
        )
    return MattingRequest(
        request_id=request_id,
        model=model,
        image=image,
        trimap=trimap,
        box=None if body.box is None else (body.box[0], body.box[1], body.box[2], body.box[3]),
        points=[Point(x=p.x, y=p.y, is_subject=p.label == 1) for p in body.points or []],
        method=MattingMethod(body.method or MattingMethod.CLOSED_FORM),
        output=MattingOutput(body.result),
        colour=body.colour,
        background=background,
        priority=priority,
        arrival_time_s=time.time(),
    )


def drop_files(body: MatteRequest) -> None:
    """What was decoded would wait in memory as long as the request does."""
    for reference in (body.image, body.trimap, body.background_image):
        if isinstance(reference, UploadedImage):
            reference.data = b""
        elif reference is not None:
            reference.image_url = None


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
        data=[MatteData(b64_json=None if url else base64.b64encode(file).decode("ascii"), url=url)],
        background="transparent" if is_cutout else "opaque",
        output_format=body.file_format,
        size=f"{image.width}x{image.height}",
        id=request_id,
        model=model,
        output=body.result,
        source="network" if body.trimap is None else "trimap",
        method=MattingMethod(body.method or MattingMethod.CLOSED_FORM),
        unknown_fraction=round(event.unknown_fraction, 6),
        uncertain_fraction=round(event.uncertain_fraction, 6),
        solved_size=_size(event.width, event.height),
        foreground_size=_size(event.foreground_width, event.foreground_height),
        warnings=list(event.warnings),
    )


def _size(width: int, height: int) -> str | None:
    return f"{width}x{height}" if width else None
