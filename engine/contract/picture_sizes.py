"""The sizes to which pictures are resized for a text model. Each function rounds as one of
transformers' processors does."""

import math
from itertools import product

Size = tuple[int, int]
"""Width and height."""


def around(width: int, height: int, shortest_edge: int) -> Size:
    """A size whose shorter side is `shortest_edge`, rounded as transformers' processor of CLIP
    does."""
    if width <= height:
        return shortest_edge, int(shortest_edge * height / width)
    return int(shortest_edge * width / height), shortest_edge


# The next two functions round as transformers' processor of LLaVA-NeXT does.
def best_mosaic(width: int, height: int, mosaics: tuple[Size, ...]) -> Size:
    """The mosaic in which a picture keeps most pixels, and of these the one with fewest others."""

    def value(mosaic: Size) -> tuple[int, int]:
        scale = min(mosaic[0] / width, mosaic[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, -math.prod(mosaic)

    return max(mosaics, key=value)


def between_borders(width: int, height: int, mosaic: Size) -> Size:
    """The size of a picture in a mosaic, of which it fills the width or the height."""
    across, down = mosaic[0] / width, mosaic[1] / height
    if across < down:
        return mosaic[0], min(math.ceil(height * across), mosaic[1])
    return min(math.ceil(width * down), mosaic[0]), mosaic[1]


# The next two functions round as transformers' processors of SmolVLM and Idefics3 do.
def fitted(width: int, height: int, longest_edge: int) -> Size:
    """A size whose longer side is `longest_edge`, and whose other side is even."""
    ratio = width / height
    if width >= height:
        return longest_edge, max(1, _even(int(longest_edge / ratio)))
    return max(1, _even(int(longest_edge * ratio))), longest_edge


def whole_cells(width: int, height: int, side: int) -> Size:
    """A size of whole cells that is not smaller and has nearly the same ratio."""
    ratio = width / height
    if width >= height:
        wide = _up_to_multiple(width, side)
        return wide, _up_to_multiple(int(wide / ratio), side)
    high = _up_to_multiple(height, side)
    return _up_to_multiple(int(high * ratio), side), high


def whole_squares(width: int, height: int, side: int, fewest: int, most: int) -> Size:
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


def closest_grid(width: int, height: int, side: int, fewest: int, most: int) -> Size:
    """The columns and rows of the grid whose ratio is nearest to the picture's; of several, the one
    with most squares that are not much larger than the picture, as in transformers' processor of
    InternVL."""
    grids = product(range(1, most + 1), range(1, most + 1))
    best, least = (1, 1), math.inf
    for grid in sorted((g for g in grids if fewest <= math.prod(g) <= most), key=math.prod):
        difference = abs(width / height - grid[0] / grid[1])
        is_filled = width * height > 0.5 * side * side * math.prod(grid)
        if difference < least or (difference == least and is_filled):
            best, least = grid, difference
    return best


def as_many_squares(width: int, height: int, side: int, most: int) -> Size:
    """The largest size of whole squares with nearly the same ratio, at most `most` of them, as in
    transformers' processor of Gemma 4."""
    factor = math.sqrt(most * side**2 / (height * width))
    wide, high = (math.floor(factor * length / side) for length in (width, height))
    if high == 0:
        wide, high = min(width // height, most), 1
    elif wide == 0:
        wide, high = 1, min(height // width, most)
    return wide * side, high * side


def whole_squares_within(width: int, height: int, side: int, longest_side: int) -> Size:
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
