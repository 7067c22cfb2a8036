"""Reads `multipart/form-data` bodies into memory, with bounds on everything a client chooses.

Nothing is written to disk and a part's file name is not even kept. The whole body is bounded by
`BodyLimitMiddleware`; this module bounds the number of parts and the size of names, headers and
text.
"""

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from engine.errors import InvalidParameter

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

# The parser warns about what a client sent, which the client reads as an error.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

MAX_PARTS = 128
MAX_NAME_BYTES = 256
MAX_TEXT_BYTES = 64 << 10
MAX_HEADER_BYTES = 4 << 10


@dataclass(slots=True)
class Part:
    """One field of a form: text or a file."""

    name: str = ""
    is_file: bool = False
    has_file_name: bool = False
    """Whether the part names a file: browsers send a file field without a chosen file with an empty
    name."""
    data: bytearray = field(default_factory=bytearray)

    def text(self) -> str:
        """The part as a text field.

        Raises:
            InvalidParameter: it is a file, too long, or not UTF-8.
        """
        if self.is_file:
            raise InvalidParameter(
                f"{self.name} must be a plain form field, not a file; send it without a file name",
                param=self.name,
            )
        if len(self.data) > MAX_TEXT_BYTES:
            raise InvalidParameter(
                f"{self.name} has {len(self.data)} bytes; a text field may have at most "
                f"{MAX_TEXT_BYTES}; send less",
                param=self.name,
            )
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            raise InvalidParameter(
                f"{self.name} is not UTF-8 text; encode it as UTF-8", param=self.name
            ) from None


class Form(dict[str, list[Part]]):
    """Parts by field name; parts of one name are in the order they were sent."""


async def read_form(content_type: str, chunks: AsyncIterator[bytes]) -> Form:
    """Parse a body as it arrives.

    Args:
        content_type: the request's header, with the boundary.

    Raises:
        InvalidParameter: the body is not a well-formed form, or a part exceeds a limit.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidParameter("the Content-Type multipart/form-data has no boundary; add one")
    reader = _Reader()
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        async for chunk in chunks:
            parser.write(chunk)
        parser.finalize()
    except (FormParserError, InvalidParameter) as error:
        # A client that is still sending would see a reset in place of the answer.
        async for _ in chunks:
            pass
        if isinstance(error, InvalidParameter):
            raise
        raise InvalidParameter("the body is not well-formed multipart/form-data") from None
    if not reader.ended:
        raise InvalidParameter("the multipart body ends before its closing boundary")
    return reader.form


class _Reader:
    """The parser's callbacks. They run between two chunks, on the event loop."""

    def __init__(self) -> None:
        self.form = Form()
        self.ended = False
        self._part = Part()
        self._num_parts = 0
        self._num_header_bytes = 0
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise InvalidParameter(f"the form has more than {MAX_PARTS} parts; send fewer")
        self._part = Part()
        self._disposition = b""
        self._num_header_bytes = 0

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header_value += data[start:end]

    def _count_header(self, num_bytes: int) -> None:
        self._num_header_bytes += num_bytes
        if self._num_header_bytes > MAX_HEADER_BYTES:
            raise InvalidParameter(f"the headers of a part have more than {MAX_HEADER_BYTES} bytes")

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"")
        if not name or len(name) > MAX_NAME_BYTES:
            raise InvalidParameter(
                f"every part needs a Content-Disposition with a name of at most {MAX_NAME_BYTES} "
                "bytes"
            )
        self._part.name = name.decode(errors="replace")
        self._part.is_file = b"filename" in options
        self._part.has_file_name = bool(options.get(b"filename"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._part.data += memoryview(data)[start:end]

    def _on_part_end(self) -> None:
        self.form.setdefault(self._part.name, []).append(self._part)

    def _on_end(self) -> None:
        self.ended = True
