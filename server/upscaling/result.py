"""The file of a result whose rows come one after another."""

from typing import Self

from engine.contract.pixels import Pixels
from server.images.files import encode_image
from server.images.png_rows import PngRows
from server.protocol.file_fields import FileFields, OutputFormat


class ResultFile:
    """Builds the file. PNG is written as rows come; other formats are made from all rows at the
    end. Both methods block: call them in a thread, one at a time."""

    def __init__(
        self, width: int, height: int, channels: int, form: OutputFormat, compression: int
    ) -> None:
        self.format = form
        self.compression = compression
        self._size = width, height, channels
        self._png = PngRows(width, height, channels) if form == "png" else None
        self._rows: list[bytes] = []

    @classmethod
    def of(cls, body: FileFields, width: int, height: int, channels: int) -> Self:
        """The file that a body asks for."""
        return cls(width, height, channels, body.file_format, body.file_quality)

    def add(self, rows: bytes) -> None:
        """Add the next rows, perhaps none."""
        if self._png is None:
            self._rows.append(rows)
        elif rows:
            self._png.add(rows)

    def file(self) -> bytes:
        """The whole file."""
        if self._png is not None:
            return self._png.file()
        width, height, channels = self._size
        data = b"".join(self._rows)
        self._rows.clear()
        pixels = Pixels(width=width, height=height, channels=channels, data=data)
        return encode_image(pixels, self.format, self.compression)
