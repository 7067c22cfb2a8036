"""Results that are asked for by url: stored for a while, and answered with where they are."""

from fastapi import Request

from server.http.own_address import own_url
from server.images.store import Keep
from server.protocol.file_fields import FileFields
from server.state import AppState

_FOLDER = "/v1/images/files/"


def keeper(
    body: FileFields, request: Request, state: AppState, *, num_pixels: int, num_images: int = 1
) -> Keep | None:
    """What stores results of at most so many pixels; None: they are in the answer itself.

    Raises:
        InvalidParameter: they might not fit, or nobody knows what their urls would be.
    """
    if body.response_format != "url":
        return None
    state.image_store.check_room(num_images, num_pixels)
    file_format = body.file_format
    settings = state.settings
    folder = own_url(request, _FOLDER, public_url=settings.public_url, host=settings.host)

    def keep(file: bytes) -> str:
        return f"{folder}{state.image_store.put(file, file_format)}"

    return keep
