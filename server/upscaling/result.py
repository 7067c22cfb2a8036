"""The file of a result whose rows come one after another."""

from engine.contract.pixels import Pixels
from server.images.files import encode_image
from server.images.png_rows import PngRows
from server.protocol.image_answers import OutputFormatName


class ResultFile:
    """Builds the file. PNG is written as rows come; other formats are made from all rows at the
    end. Both methods block: call them in a thread, one at a time."""

    def __init__(
        self, width: int, height: int, channels: int, form: OutputFormatName, compression: int
    ) -> None:
        self._size = width, height, channels
        self._format = form
        self._compression = compression
        self._png = PngRows(width, height, channels) if form == "png" else None
        self._rows: list[bytes] = []

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
        return encode_image(pixels, self._format, self._compression)
