"""How a text model sees pictures: how many rows a picture takes, and which crops the encoder gets.

Pure arithmetic on sizes, so that the server knows a picture's tokens before it decodes the file.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, product
from typing import Literal, NamedTuple

from engine.contract import picture_sizes
from engine.contract.picture_sizes import Size
from engine.contract.prompt_states import StatePart

Resampling = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
"""Filters of Pillow, by which crops are resized."""
KEPT_BYTES = 64 << 20
"""The memory of the states that an engine keeps."""
MOST_TIMES_LONGER = 200
"""How many times as long as the shorter side the longer side of a picture may be, if crops have any
size."""


class Crop(NamedTuple):
    """A part of a picture that the encoder reads at once."""

    resizes: tuple[Size, ...]
    """The sizes to which the whole picture is resized, one after the other, before the box is cut
    out. Each result has 8 bits per channel."""
    box: tuple[int, int, int, int]
    """Left, top, right and bottom in the resized picture: S x S pixels, or squares of this size. It
    may be larger than the picture, around which it is black."""
    shape: tuple[int, int] | None = None
    """The numbers of lines and columns of its states, if these do not follow from its size."""
    kept: tuple[int, int] | None = None
    """The numbers of lines and columns of states that are reduced to these; None if none are."""

    @property
    def size(self) -> Size:
        """The crop's width and height."""
        left, top, right, bottom = self.box
        return right - left, bottom - top


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFacts:
    """What the server must know of a model that takes pictures in its prompts."""

    side: int
    """S, the width and height of each crop; if crops have any size, of each of their squares."""
    rows_per_crop: int
    """The number of states of a crop; if crops have any size 1, for each square."""
    marker: str
    """The text by which the model's chat template marks the place of a picture."""
    placeholder: str
    """The text of the placeholder token. A prompt is tokenised as a whole, with this text once for
    each row of a crop, since tokens may span the borders of pieces."""
    placeholder_id: int
    """The token that represents each row of a crop in the prompt."""
    looks_both_ways: bool = False
    """Whether the rows of a crop attend to each other in both directions. If not, they attend only
    to earlier rows, as text does."""
    resampling: Resampling
    """The filter by which pictures are resized."""
    before: str
    """The text before the crop that shows the whole picture."""
    after: str
    """The text after the crop that shows the whole picture."""
    longest_edge: int | None = None
    """The length of the longer side to which pictures are resized first. None: they are resized to
    S x S at once."""
    pixel_bounds: tuple[int, int] | None = None
    """The fewest and the most pixels of a crop. It shows the whole picture in nearly its own ratio,
    in squares of S x S pixels, each of which is a state."""
    most_squares: int | None = None
    """The most squares of a crop. Pictures are enlarged or reduced until they fill nearly as
    many."""
    longest_side: int | None = None
    """The longest width or height of a crop, before it is stretched to whole squares. If this,
    `most_squares` and `pixel_bounds` are None, all crops are S x S pixels."""
    has_axes: bool = False
    """Whether the positions of a picture's rows have a height and a width."""
    shortest_edge: int | None = None
    """The length of the shorter side to which pictures are resized, before S x S pixels are cut out
    of their middle. None: they are not cut like this."""
    mosaics: tuple[Size, ...] = ()
    """The sizes of mosaics of S x S pixels. A second crop shows the picture in one of them, in its
    own ratio between black borders. States that show only borders are left out, and each line of
    states has one more at its end. Empty: there is no second crop."""
    most_mosaic_crops: int | None = None
    """The number of crops whose states a mosaic has at most, nearly; the states of larger ones are
    reduced. None: there is no limit."""
    tiles: tuple[int, int] | None = None
    """The fewest and the most crops of a grid into which a picture is cut, in nearly its own ratio;
    if there are several, one of the whole picture follows. None: there is no such grid."""
    line_end: str | None = None
    """The text of the token between two lines of squares; None if there is none."""
    before_cell: str | None = None
    """The text before each cell of the grid into which a picture is cut, followed by the cell's row
    and column. None: pictures are not cut."""

    @property
    def has_any_size(self) -> bool:
        """Whether crops have any size, in squares."""
        limits = self.pixel_bounds, self.most_squares, self.longest_side
        return any(limit is not None for limit in limits)

    @property
    def most_states(self) -> int:
        """The most states of a crop."""
        if self.most_squares is not None:
            return self.most_squares
        if self.longest_side is not None:
            return math.ceil(self.longest_side / self.side) ** 2
        if self.mosaics:
            return math.prod(_largest_mosaic(self).shape or ())
        if self.pixel_bounds is None:
            return self.rows_per_crop
        return max(1, self.pixel_bounds[1] // self.side**2)

    def takes(self, width: int, height: int) -> bool:
        """Whether pictures of this size can be read."""
        longer, shorter = max(width, height), min(width, height)
        is_bounded = self.has_any_size or self.shortest_edge is not None
        return not is_bounded or longer <= MOST_TIMES_LONGER * shorter

    def lines(self, crop: Crop) -> list[int]:
        """The number of states of each line of a crop; of the whole crop if no token stands between
        its lines."""
        if crop.shape is not None:
            return [math.prod(crop.shape)]
        width, height = (length // self.side for length in crop.size)
        if self.line_end is None:
            return [width * height * self.rows_per_crop]
        return [width] * height

    def fits(self, part: StatePart) -> bool:
        """Whether a part has as many rows and bytes as a crop."""
        if self.mosaics and part.shape is not None:
            return self._fits_mosaic(part, part.shape)
        form = part.columns is not None, part.has_axes, part.parts_lines
        if form != (self.has_any_size, self.has_axes, self.line_end is not None):
            return False
        squares, columns = part.num_states if self.has_any_size else 1, part.columns or 1
        num_more = squares // columns - 1 if part.parts_lines else 0
        sizes = squares * self.rows_per_crop + num_more, squares * 3 * self.side**2
        has_lines = squares > 0 and columns > 0 and squares % columns == 0
        is_wide = part.width == (columns * self.side if self.has_any_size else None)
        return has_lines and is_wide and (part.length, len(part.content)) == sizes

    def black(self, crop: Crop, start: int = 0) -> StatePart:
        """The part of a prompt that shows a crop, which is black until the picture is decoded.

        Args:
            start: the number of prompt rows before it.
        """
        width, height = crop.size
        lines, columns = self.lines(crop), width // self.side if self.has_any_size else None
        return StatePart(
            start=start,
            length=sum(lines) + len(lines) - 1,
            content=bytes(3 * width * height),
            columns=crop.shape[1] if crop.shape else columns,
            width=width if crop.shape or columns else None,
            kept=crop.kept,
            has_axes=self.has_axes,
            parts_lines=self.line_end is not None,
        )

    def largest(self, most_states: int) -> StatePart:
        """The largest part of a prompt that shows a crop.

        Args:
            most_states: the most states that it may have, if crops have several sizes.
        """
        if self.mosaics and most_states >= self.most_states:
            return self.black(_largest_mosaic(self))
        columns = math.isqrt(min(self.most_states, most_states)) if self.has_any_size else 1
        length = columns * self.side
        return self.black(Crop((), (0, 0, length, length)))

    def pieces(self, width: int, height: int) -> list[str | Crop]:
        """What replaces the marker of a picture of this size: text and crops, in order."""
        whole = (self.side, self.side)
        if self.most_squares is not None:
            size = picture_sizes.as_many_squares(width, height, self.side, self.most_squares)
            return [self.before, Crop((size,), (0, 0, *size)), self.after]
        if self.longest_side is not None:
            size = picture_sizes.whole_squares_within(width, height, self.side, self.longest_side)
            return [self.before, Crop((size,), (0, 0, *size)), self.after]
        if self.pixel_bounds is not None:
            size = picture_sizes.whole_squares(width, height, self.side, *self.pixel_bounds)
            return [self.before, Crop((size,), (0, 0, *size)), self.after]
        if self.shortest_edge is not None:
            size = picture_sizes.around(width, height, self.shortest_edge)
            left, top = ((length - self.side) // 2 for length in size)
            box = (left, top, left + self.side, top + self.side)
            return [self.before, Crop((size,), box), self.after]
        if self.tiles is not None:
            return [self.before, *self._tiles(width, height, *self.tiles), self.after]
        if self.longest_edge is None:
            mosaic = self._mosaic(width, height)
            return [self.before, self._crop((whole,)), *mosaic, self.after]
        first = picture_sizes.fitted(width, height, self.longest_edge)
        grid = whole if self.before_cell is None else picture_sizes.whole_cells(*first, self.side)
        if grid == whole:
            return [self.before, self._crop((first, whole)), self.after]
        cells = self._cells((first, grid))
        return [*cells, f"\n\n{self.before}", self._crop((first, grid, whole)), self.after]

    def num_kept(self, row_bytes: int) -> int:
        """The number of crops of the largest size whose states an engine keeps, at least one.

        Args:
            row_bytes: the bytes of one row's state.
        """
        return max(1, KEPT_BYTES // (self.most_states * row_bytes))

    def kept_bytes(self, row_bytes: int) -> int:
        """The memory of those states."""
        return self.num_kept(row_bytes) * self.most_states * row_bytes

    def _tiles(self, width: int, height: int, fewest: int, most: int) -> Iterator[Crop]:
        columns, rows = picture_sizes.closest_grid(width, height, self.side, fewest, most)
        resizes = ((columns * self.side, rows * self.side),)
        for row, column in product(range(rows), range(columns)):
            yield self._crop(resizes, column, row)
        if columns * rows > 1:
            yield self._crop(((self.side, self.side),))

    def _mosaic(self, width: int, height: int) -> list[Crop]:
        """The crop that shows a picture in one of the `mosaics`, if any of its states is kept."""
        if not self.mosaics:
            return []
        size = picture_sizes.best_mosaic(width, height, self.mosaics)
        inner = picture_sizes.between_borders(width, height, size)
        left, top = (-((whole - part) // 2) for whole, part in zip(size, inner, strict=True))
        lines, columns = self._shape_of(size)
        if width / height > columns / lines:
            lines -= (lines - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (lines / height), 7))) // 2 * 2
        box = (left, top, left + size[0], top + size[1])
        return [self._mosaic_crop((inner,), box, (lines, columns))] if lines else []

    def _mosaic_crop(
        self, resizes: tuple[Size, ...], box: tuple[int, int, int, int], kept: tuple[int, int]
    ) -> Crop:
        """The crop of a mosaic of which these lines and columns of states are kept."""
        lines, columns = self._reduced(kept)
        is_reduced = (lines, columns) != kept
        return Crop(resizes, box, (lines, columns + 1), kept if is_reduced else None)

    def _reduced(self, kept: tuple[int, int]) -> tuple[int, int]:
        """The lines and columns that remain of a mosaic's, as in transformers' LLaVA-OneVision."""
        if self.most_mosaic_crops is None:
            return kept
        ratio = math.sqrt(math.prod(kept) / (self.most_mosaic_crops * self.rows_per_crop))
        return (int(kept[0] // ratio), int(kept[1] // ratio)) if ratio > 1.1 else kept

    def _shape_of(self, mosaic: Size) -> tuple[int, int]:
        """The numbers of lines and columns of a mosaic whose states are all kept."""
        across, down = (length // self.side for length in mosaic)
        grid = math.isqrt(self.rows_per_crop)
        return down * grid, across * grid

    def _fits_mosaic(self, part: StatePart, shape: tuple[int, int]) -> bool:
        """Whether a part is a mosaic of which lines or columns may be left out."""
        height, width = part.size
        lines, columns = kept = part.kept or (shape[0], shape[1] - 1)
        most = self._shape_of((width, height))
        is_within = 1 <= lines <= most[0] and 0 <= columns <= most[1]
        is_within = is_within and self._reduced(kept) == (shape[0], shape[1] - 1)
        is_known = (width, height) in self.mosaics and len(part.content) == 3 * width * height
        return is_within and is_known and part.length == math.prod(shape)

    def _cells(self, resizes: tuple[Size, ...]) -> Iterator[str | Crop]:
        columns, rows = (length // self.side for length in resizes[-1])
        for row, column in product(range(rows), range(columns)):
            line_end = "\n" if row and not column else ""
            yield f"{line_end}{self.before_cell}<row_{row + 1}_col_{column + 1}>"
            yield self._crop(resizes, column, row)

    def _crop(self, resizes: tuple[Size, ...], column: int = 0, row: int = 0) -> Crop:
        left, top = column * self.side, row * self.side
        return Crop(resizes, (left, top, left + self.side, top + self.side))


@lru_cache(maxsize=16)
def _largest_mosaic(facts: PictureFacts) -> Crop:
    """The crop with most states, as reduced ones may have fewer than smaller ones."""
    crops = (
        facts._mosaic_crop((), (0, 0, *size), kept)
        for size in facts.mosaics
        for lines, columns in [facts._shape_of(size)]
        for kept in chain(
            ((line, columns) for line in range(lines, 0, -2)),
            ((lines, column) for column in range(columns, 0, -2)),
        )
    )
    return max(crops, key=lambda crop: math.prod(crop.shape or ()))
