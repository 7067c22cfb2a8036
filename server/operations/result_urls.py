"""Results that are requested by url: they are stored for a while, and the answer says where."""

from typing import Any

from server.http.own_address import own_url
from server.images.store import Keep
from server.operations.exchange import Exchange
from server.protocol.file_fields import FileFields

_FOLDER = "/v1/images/files/"


def url_keeper(
    body: FileFields, exchange: Exchange[Any, Any], *, num_pixels: int, num_images: int = 1
) -> Keep | None:
    """A function that stores results with at most this many pixels; None if the answer itself
    contains them.

    Raises:
        InvalidParameter: they might not fit, or the server's own address is not known.
    """
    if body.response_format != "url":
        return None
    store, settings = exchange.state.image_store, exchange.state.settings
    store.check_room(num_images, num_pixels)
    file_format = body.file_format
    folder = own_url(exchange.request, _FOLDER, public_url=settings.public_url, host=settings.host)

    def keep(file: bytes) -> str:
        return f"{folder}{store.put(file, file_format)}"

    return keep
