"""A small picture that shows the progress of a large one."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.contract.pixels import Pixels


class PreviewCanvas:
    """A picture that begins as the image without new details; tiles are drawn over it.

    Args:
        image: `[channels, height, width]` in [0, 1], alpha straight.
        size: the result's width and height.
    """

    MAX_SIDE = 1024

    def __init__(self, image: Tensor, size: tuple[int, int]) -> None:
        shrink = min(1.0, self.MAX_SIDE / max(size))
        width, height = (max(1, round(side * shrink)) for side in size)
        self._picture = _resized(image, (height, width))

    def lay(self, tile: Tensor, top: float, left: float, whole: tuple[int, int]) -> None:
        """Draw a tile, `[channels, h, w]`, which is multiplied by alpha if there is any.

        Args:
            top, left: the tile's position, as shares of the result; below 0 is beyond its border.
            whole: the result's height and width in the tile's pixels.
        """
        _, height, width = self._picture.shape
        y, rows = _place(top, tile.shape[1] / whole[0], height)
        x, columns = _place(left, tile.shape[2] / whole[1], width)
        small = _resized(tile, (rows, columns)).clamp_(0, 1)
        if small.shape[0] == 4:
            small[:3] = (small[:3] / small[3:].clamp_min(1 / 510)).clamp_(0, 1)
        above, before = max(0, -y), max(0, -x)
        target = self._picture[:, y + above : y + rows, x + before : x + columns]
        target.copy_(small[:, above : above + target.shape[1], before : before + target.shape[2]])

    def pixels(self) -> Pixels:
        levels = self._picture.mul(255).round_().clamp_(0, 255).to(torch.uint8)
        channels, height, width = levels.shape
        data = levels.permute(1, 2, 0).contiguous().numpy().tobytes()
        return Pixels(width=width, height=height, channels=channels, data=data)


def _place(start: float, length: float, side: int) -> tuple[int, int]:
    """The first pixel and the number of pixels, at least one."""
    first = round(start * side)
    return first, max(1, round((start + length) * side) - first)


def _resized(planes: Tensor, size: tuple[int, int]) -> Tensor:
    if size[1] == 1 < size[0]:
        # When torch 2 shrinks a column, it gives all its rows the first row's values.
        return _resized(planes.mT.contiguous(), size[::-1]).mT
    return functional.interpolate(
        planes[None], size, mode="bilinear", antialias=True, align_corners=False
    )[0]
