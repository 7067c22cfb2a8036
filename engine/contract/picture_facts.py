"""How a text model sees pictures: how many rows a picture takes, and which crops the encoder gets.

Pure arithmetic on sizes, so that the server knows a picture's tokens before it decodes the file.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

from engine.contract.prompt_states import StatePart

Resampling = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
"""Filters of Pillow, by which crops are resized."""
Size = tuple[int, int]
"""Width and height."""

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
    """Left, top, right and bottom in the resized picture: S x S pixels, or squares of this size."""

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
    """The token that stands in the prompt for each row of a crop."""
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
    longest_side: int | None = None
    """The longest width or height of a crop, before it is stretched to whole squares as above. If
    this and `pixel_bounds` are None, all crops are S x S pixels."""
    has_axes: bool = False
    """Whether the positions of a picture's rows have a height and a width."""
    line_end: str | None = None
    """The text of the token between two lines of squares; None if there is none."""
    before_cell: str | None = None
    """The text before each cell of the grid into which a picture is cut, followed by the cell's row
    and column. None: pictures are not cut."""

    @property
    def has_any_size(self) -> bool:
        """Whether crops have any size, in squares."""
        return self.pixel_bounds is not None or self.longest_side is not None

    @property
    def most_states(self) -> int:
        """The most states of a crop."""
        if self.longest_side is not None:
            return math.ceil(self.longest_side / self.side) ** 2
        if self.pixel_bounds is None:
            return self.rows_per_crop
        return max(1, self.pixel_bounds[1] // self.side**2)

    def takes(self, width: int, height: int) -> bool:
        """Whether pictures of this size can be read."""
        longer, shorter = max(width, height), min(width, height)
        return not self.has_any_size or longer <= MOST_TIMES_LONGER * shorter

    def lines(self, crop: Crop) -> list[int]:
        """The number of states of each line of a crop; of the whole crop if no token stands between
        its lines."""
        width, height = (length // self.side for length in crop.size)
        if self.line_end is None:
            return [width * height * self.rows_per_crop]
        return [width] * height

    def fits(self, part: StatePart) -> bool:
        """Whether a part has as many rows and bytes as a crop."""
        form = part.columns is not None, part.has_axes, part.parts_lines
        if form != (self.has_any_size, self.has_axes, self.line_end is not None):
            return False
        squares, columns = part.num_states if self.has_any_size else 1, part.columns or 1
        num_more = squares // columns - 1 if part.parts_lines else 0
        sizes = squares * self.rows_per_crop + num_more, squares * 3 * self.side**2
        has_lines = squares > 0 and squares % columns == 0
        return has_lines and (part.length, len(part.content)) == sizes

    def black(self, crop: Crop, start: int = 0) -> StatePart:
        """The part of a prompt that shows a crop, which is black until the picture is decoded.

        Args:
            start: the number of prompt rows before it.
        """
        width, height = crop.size
        lines = self.lines(crop)
        return StatePart(
            start=start,
            length=sum(lines) + len(lines) - 1,
            content=bytes(3 * width * height),
            columns=width // self.side if self.has_any_size else None,
            has_axes=self.has_axes,
            parts_lines=self.line_end is not None,
        )

    def largest(self, most_states: int) -> StatePart:
        """The largest part of a prompt that shows a crop.

        Args:
            most_states: the most states that it may have, if crops have several sizes.
        """
        columns = math.isqrt(min(self.most_states, most_states)) if self.has_any_size else 1
        length = columns * self.side
        return self.black(Crop((), (0, 0, length, length)))

    def pieces(self, width: int, height: int) -> list[str | Crop]:
        """What replaces the marker of a picture of this size: text and crops, in order."""
        whole = (self.side, self.side)
        if self.longest_side is not None:
            size = _whole_squares_within(width, height, self.side, self.longest_side)
            return [self.before, Crop((size,), (0, 0, *size)), self.after]
        if self.pixel_bounds is not None:
            size = _whole_squares(width, height, self.side, *self.pixel_bounds)
            return [self.before, Crop((size,), (0, 0, *size)), self.after]
        if self.longest_edge is None:
            return [self.before, self._crop((whole,)), self.after]
        first = _fitted(width, height, self.longest_edge)
        grid = whole if self.before_cell is None else _whole_cells(*first, self.side)
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

    def _cells(self, resizes: tuple[Size, ...]) -> Iterator[str | Crop]:
        columns, rows = (length // self.side for length in resizes[-1])
        for row, column in product(range(rows), range(columns)):
            line_end = "\n" if row and not column else ""
            yield f"{line_end}{self.before_cell}<row_{row + 1}_col_{column + 1}>"
            yield self._crop(resizes, column, row)

    def _crop(self, resizes: tuple[Size, ...], column: int = 0, row: int = 0) -> Crop:
        left, top = column * self.side, row * self.side
        return Crop(resizes, (left, top, left + self.side, top + self.side))


# Both functions round as transformers' processors of SmolVLM and Idefics3 do.
def _fitted(width: int, height: int, longest_edge: int) -> Size:
    """A size whose longer side is `longest_edge`, and whose other side is even."""
    ratio = width / height
    if width >= height:
        return longest_edge, max(1, _even(int(longest_edge / ratio)))
    return max(1, _even(int(longest_edge * ratio))), longest_edge


def _whole_cells(width: int, height: int, side: int) -> Size:
    """A size of whole cells that is not smaller and has nearly the same ratio."""
    ratio = width / height
    if width >= height:
        wide = _up_to_multiple(width, side)
        return wide, _up_to_multiple(int(wide / ratio), side)
    high = _up_to_multiple(height, side)
    return _up_to_multiple(int(high * ratio), side), high


def _whole_squares(width: int, height: int, side: int, fewest: int, most: int) -> Size:
    """A size of whole squares with nearly the same ratio and that many pixels, rounded as
    transformers' processor of Qwen2-VL does."""
    wide, high = round(width / side) * side, round(height / side) * side
    if wide * high > most:
        shrink = math.sqrt(height * width / most)
        return (
            max(side, math.floor(width / shrink / side) * side),
            max(side, math.floor(height / shrink / side) * side),
        )
    if wide * high < fewest:
        stretch = math.sqrt(fewest / (height * width))
        return (
            math.ceil(width * stretch / side) * side,
            math.ceil(height * stretch / side) * side,
        )
    return wide, high


def _whole_squares_within(width: int, height: int, side: int, longest_side: int) -> Size:
    """A size of whole squares with nearly the same ratio, no side of which is longer than
    `longest_side` before it is rounded up, as in transformers' processor of Pixtral."""
    ratio = max(height / longest_side, width / longest_side)
    if ratio > 1:
        width, height = math.floor(width / ratio), math.floor(height / ratio)
    return _up_to_multiple(width, side), _up_to_multiple(height, side)


def _even(length: int) -> int:
    return length + length % 2


def _up_to_multiple(length: int, side: int) -> int:
    return max(1, math.ceil(length / side)) * side
