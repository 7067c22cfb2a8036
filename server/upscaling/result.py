"""The file of a result whose rows come one after the other."""

from engine.image_types import Pixels
from server.images.files import encode_image
from server.images.png_rows import PngRows
from server.protocol.image_answers import OutputFormatName


class ResultFile:
    """PNG is written as rows come; other formats are made of all of them at the end. Both calls
    block: make them in a thread, one at a time."""

    def __init__(
        self, width: int, height: int, channels: int, form: OutputFormatName, compression: int
    ) -> None:
        self._size = width, height, channels
        self._format = form
        self._compression = compression
        self._png = PngRows(width, height, channels) if form == "png" else None
        self._rows: list[bytes] = []

    def add(self, rows: bytes) -> None:
        """The next rows, perhaps none."""
        if self._png is None:
            self._rows.append(rows)
        elif rows:
            self._png.add(rows)

    def file(self) -> bytes:
        """All of it."""
        if self._png is not None:
            return self._png.file()
        width, height, channels = self._size
        data = b"".join(self._rows)
        self._rows.clear()
        pixels = Pixels(width=width, height=height, channels=channels, data=data)
        return encode_image(pixels, self._format, self._compression)
