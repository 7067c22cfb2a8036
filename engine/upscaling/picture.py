"""One image in progress: divided into tiles, and put together from the top down."""

import numpy as np
import torch
from torch import Tensor

from engine.contract.enlarge import UpscaleRequest
from engine.contract.examination import Examination
from engine.contract.pixels import Pixels
from engine.fidelity.aftercare import Aftercare
from engine.pictures.arrays import Bytes, array_of
from engine.pictures.resampling import RowResampler
from engine.pictures.tensors import LEAST_ALPHA, as_bytes, as_tensor, straight
from engine.pictures.tiles import Side, TileRows, mirrored
from engine.upscaling.network import NetworkFacts
from engine.upscaling.preview import PreviewCanvas

BORDER = 10
"""The pixels by which an image is mirrored beyond its borders. Networks pad with zeros, which would
show at the edges."""
_CARE_BYTES = 24
"""The bytes per number of the image for comparing the result with it."""


class Picture:
    """A request's image and result. Tiles are added in the order of their numbers.

    Attributes:
        num_tiles: the number of all tiles.
        num_laid: the number of tiles that were added.
        examination: the findings about the result, once the last tile is added.
    """

    def __init__(self, request: UpscaleRequest, facts: NetworkFacts) -> None:
        image, multiple = request.image, facts.size_multiple
        self.request = request
        self._facts = facts
        self._border = -(-BORDER // multiple) * multiple
        self._across, self._down = (
            Side.planned(
                max(-(-(side + 2 * self._border) // multiple) * multiple, facts.min_side),
                max(request.tile, facts.min_side),
                request.overlap,
                multiple,
            )
            for side in (image.width, image.height)
        )
        self.num_tiles = len(self._across.starts) * len(self._down.starts)
        self.num_laid = 0
        self._given = array_of(image)
        self._has_alpha = image.channels == 4 and bool((self._given[..., 3] < 255).any())
        drawn = image.height * facts.scale, image.width * facts.scale
        wanted = request.height, request.width
        self._resampler = None if drawn == wanted else RowResampler(drawn, wanted)
        self._merged: TileRows | None = None
        self._native_row = -self._border * facts.scale
        """The next row of the network that will be finished; those of the border come before 0."""
        self._result_row = 0
        self._sent_row = 0
        self._care: Aftercare | None = None
        self.examination: Examination | None = None
        self._canvas: PreviewCanvas | None = None

    @property
    def rows(self) -> int:
        """The number of three-channel images per tile: two if there is visible alpha."""
        return 2 if self._has_alpha else 1

    @property
    def tile_size(self) -> tuple[int, int]:
        """The height and width of a tile in pixels."""
        return self._down.tile, self._across.tile

    @property
    def memory_bytes(self) -> int:
        """The bytes that it holds while in progress, besides its image: unfinished rows, and
        finished rows until they have been sent."""
        pixels = self._down.tile * self._across.length * self._facts.scale**2
        request, channels = self.request, self.request.image.channels
        held = request.width * request.height if request.faithfulness.fidelity > 0 else 0
        return (2 * 4 * pixels + held + _CARE_BYTES * self._given[..., 0].size) * channels

    def tile(self, number: int) -> Tensor:
        """A tile for the network, `[rows, 3, height, width]`: RGB in [0, 1], multiplied by alpha if
        there is any, followed by alpha as grey."""
        row, column = divmod(number, len(self._across.starts))
        top = self._down.starts[row] - self._border
        left = self._across.starts[column] - self._border
        height, width = self._given.shape[:2]
        rows = mirrored(height, top, top + self._down.tile)
        columns = mirrored(width, left, left + self._across.tile)
        tile = as_tensor(self._given[rows[:, None], columns]).div_(255)
        if not self._has_alpha:
            return tile[None, :3]
        return torch.stack([tile[:3] * tile[3:], tile[3:].expand(3, -1, -1)])

    def lay(self, output: Tensor) -> tuple[int, bytes]:
        """Add the network's output for the next tile.

        Returns:
            The number of the first row that is now finished, and the finished rows, possibly none.
        """
        tile = output[0]
        if self._has_alpha:
            tile = torch.cat([tile, output[1].mean(0, keepdim=True)])
        if self._merged is None:
            scale = self._facts.scale
            across, down = self._across.scaled(scale), self._down.scaled(scale)
            rim = rim_of(self.request, self._facts) * scale
            self._merged = TileRows(across, down, rim, len(tile))
        finished = self._merged.add(self.num_laid, tile)
        self._preview(tile)
        self.num_laid += 1
        if finished is None:
            return self._sent_row, b""
        made = self._without_border(finished).clamp_(0, 1)
        if self._resampler is not None:
            resized = self._resampler.add(made.permute(1, 2, 0).contiguous().numpy())
            made = torch.from_numpy(resized).permute(2, 0, 1)
        rows = self._levels(made, self._result_row)
        self._result_row += len(rows)
        return self._cared_for(rows)

    def preview(self) -> Pixels:
        """The result so far, over the image itself, with at most `PreviewCanvas.MAX_SIDE` a
        side."""
        return self._drawn().pixels()

    def _drawn(self) -> PreviewCanvas:
        if self._canvas is None:
            size = (self.request.height, self.request.width)
            thinned = max(1, max(self._given.shape) // (2 * PreviewCanvas.MAX_SIDE))
            coarse = self._given[::thinned, ::thinned, : 4 if self._has_alpha else 3]
            self._canvas = PreviewCanvas(as_tensor(coarse) / 255, size)
        return self._canvas

    def _preview(self, tile: Tensor) -> None:
        if self.request.num_previews:
            row, column = divmod(self.num_laid, len(self._across.starts))
            scale = self._facts.scale
            top = (self._down.starts[row] - self._border) * scale
            left = (self._across.starts[column] - self._border) * scale
            height, width = (side * scale for side in self._given.shape[:2])
            self._drawn().lay(tile, top / height, left / width, (height, width))

    def _without_border(self, rows: Tensor) -> Tensor:
        scale = self._facts.scale
        height, width = (side * scale for side in self._given.shape[:2])
        first, self._native_row = self._native_row, self._native_row + rows.shape[1]
        left = self._border * scale
        above = min(max(0, -first), rows.shape[1])
        below = max(above, min(rows.shape[1], height - first))
        return rows[:, above:below, left : left + width]

    def _cared_for(self, rows: Bytes) -> tuple[int, bytes]:
        """The rows that can be sent after these have come, and the number of the first."""
        request, first = self.request, self._sent_row
        if self._care is None:
            self._care = Aftercare(self._given, request.height, request.width, request.faithfulness)
        parts = [self._care.take(rows)]
        if self.num_laid == self.num_tiles:
            held, self.examination = self._care.end()
            parts.append(held)
        self._sent_row += sum(map(len, parts))
        return first, b"".join(part.tobytes() for part in parts)

    def _levels(self, rows: Tensor, first: int) -> Bytes:
        """Levels `[rows, width, channels]` with the channels of the image."""
        rows = rows.clamp_(0, 1)
        if self._has_alpha:
            rows[:3] = self._straight(rows, first)
        elif self.request.image.channels == 4:
            rows = torch.cat([rows, torch.ones_like(rows[:1])])
        return as_bytes(rows.mul_(255))

    def _straight(self, rows: Tensor, first: int) -> Tensor:
        """Colours that are no longer multiplied by alpha; where nothing shows, those of the
        image."""
        height, width = self._given.shape[:2]
        at = ((np.arange(first, first + rows.shape[1]) + 0.5) * height / self.request.height) // 1
        columns = ((np.arange(rows.shape[2]) + 0.5) * width / self.request.width) // 1
        nearest = as_tensor(self._given[at.astype(int)[:, None], columns.astype(int)])[:3] / 255
        return torch.where(rows[3:] > LEAST_ALPHA, straight(rows[:3], rows[3:]), nearest)


def rim_of(request: UpscaleRequest, facts: NetworkFacts) -> int:
    """The width of a tile's unusable edge next to a neighbour, in pixels of the image."""
    if request.exact and facts.receptive_radius is not None:
        return facts.receptive_radius
    return request.overlap // 4
