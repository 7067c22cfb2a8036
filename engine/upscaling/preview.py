"""A small picture that shows the progress of a large one."""

from torch import Tensor

from engine.contract.pixels import Pixels
from engine.pictures.arrays import pixels_of, scaled_size
from engine.pictures.tensors import as_bytes, resampled, straight


class PreviewCanvas:
    """A picture that begins as the image without new details; tiles are drawn over it.

    Args:
        image: `[channels, height, width]` in [0, 1], alpha straight.
        size: the result's height and width.
    """

    MAX_SIDE = 1024

    def __init__(self, image: Tensor, size: tuple[int, int]) -> None:
        height, width = scaled_size(*size, self.MAX_SIDE / max(size))
        self._picture = resampled(image[None], height, width, "bilinear")[0]

    def lay(self, tile: Tensor, top: float, left: float, whole: tuple[int, int]) -> None:
        """Draw a tile, `[channels, h, w]`, which is multiplied by alpha if there is any.

        Args:
            top, left: the tile's position, as shares of the result; below 0 is beyond its border.
            whole: the result's height and width in the tile's pixels.
        """
        _, height, width = self._picture.shape
        y, rows = _place(top, tile.shape[1] / whole[0], height)
        x, columns = _place(left, tile.shape[2] / whole[1], width)
        small = resampled(tile[None], rows, columns, "bilinear")[0].clamp_(0, 1)
        if small.shape[0] == 4:
            small[:3] = straight(small[:3], small[3:])
        above, before = max(0, -y), max(0, -x)
        target = self._picture[:, y + above : y + rows, x + before : x + columns]
        target.copy_(small[:, above : above + target.shape[1], before : before + target.shape[2]])

    def pixels(self) -> Pixels:
        return pixels_of(as_bytes(self._picture * 255))


def _place(start: float, length: float, side: int) -> tuple[int, int]:
    """The first pixel and the number of pixels, at least one."""
    first = round(start * side)
    return first, max(1, round((start + length) * side) - first)
