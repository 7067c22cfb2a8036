"""A picture as it travels between the server and its workers."""


class Pixels:
    """An 8-bit image with rows from the top, interleaved channels and no padding.

    `channels` is 1 (mask or luminance), 3 (RGB) or 4 (RGB and straight alpha), all sRGB. It is not
    a dataclass, because a message would copy the data of one (`engine.worker.messages`).
    """

    __slots__ = ("channels", "data", "height", "width")

    def __init__(self, *, width: int, height: int, channels: int, data: bytes) -> None:
        self.width = width
        self.height = height
        self.channels = channels
        self.data = data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pixels) and self._facts == other._facts

    def __hash__(self) -> int:
        return hash(self._facts)

    @property
    def _facts(self) -> tuple[int, int, int, bytes]:
        return self.width, self.height, self.channels, self.data
