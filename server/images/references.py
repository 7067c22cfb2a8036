"""Reads a picture from a request: a file of a form, or base64 in JSON."""

import binascii
import re

from engine.errors import InvalidParameter, UnsupportedFeature
from server.protocol.image_inputs import ImageReference, UploadedImage

_DATA_URL = re.compile(r"data:[a-z0-9/+.-]{0,64}(;[a-z0-9=-]{1,64})*;base64,", re.IGNORECASE)
_WHITESPACE = b" \t\r\n"
"""White space as in MIME's base64, which tools write in lines; it is not data."""


def file_of(reference: ImageReference, param: str) -> bytes:
    """The file's bytes. Blocking: call it in a thread.

    Raises:
        InvalidParameter: it is not a data URL.
        UnsupportedFeature: it is a file id.
    """
    if isinstance(reference, UploadedImage):
        return reference.data
    if reference.file_id:
        raise UnsupportedFeature(
            "file_id is not supported by this server; send the image itself", param=param
        )
    url = reference.image_url
    if url is None:
        raise InvalidParameter(f"{param} needs image_url with the image as a data URL", param=param)
    if not url:
        raise InvalidParameter(f"{param} is empty; send the image as base64", param=param)
    return _data_of(url, param)


def _data_of(url: str, param: str) -> bytes:
    head = _DATA_URL.match(url)
    try:
        encoded = url[head.end() if head else 0 :].encode("ascii").translate(None, _WHITESPACE)
        return binascii.a2b_base64(encoded, strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidParameter(
            f"{param}: the data URL does not contain valid base64; encode the file as base64"
            if head
            else f"{param} must be a data URL, data:image/png;base64,..., or only its base64",
            param=param,
        ) from None
