"""A PNG file written row by row, so that a large picture is never in memory as a whole.

As libpng does by default, each row is filtered in the one of five ways whose differences are
smallest (PNG specification, third edition, sections 9 and 12.8).
"""

import struct
import zlib

import numpy as np
import numpy.typing as npt

_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
"""PNG's colour types of grey, RGB and RGBA."""
_AT_ONCE = 1 << 20
"""Bytes of rows that are filtered together; during that, they are in memory about ten times."""

_Bytes = npt.NDArray[np.uint8]


class PngRows:
    """Takes rows from the top down, then gives the file. Not safe for several threads at once.

    Args:
        width, height: the picture's size in pixels.
        channels: 1, 3 or 4, of 8 bits each.
    """

    def __init__(self, width: int, height: int, channels: int) -> None:
        self._channels = channels
        self._stride = width * channels
        self._above = np.zeros((1, self._stride), np.uint8)
        self._packer = zlib.compressobj()
        head = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
        self._parts = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", head)]

    def add(self, rows: bytes) -> None:
        """Add whole rows, any number of them."""
        pixels = np.frombuffer(rows, np.uint8).reshape(-1, self._stride)
        num_rows = max(1, _AT_ONCE // self._stride)
        for start in range(0, len(pixels), num_rows):
            block = np.concatenate([self._above, pixels[start : start + num_rows]])
            packed = self._packer.compress(_filtered(block, self._channels).tobytes())
            if packed:
                self._parts.append(_chunk(b"IDAT", packed))
            self._above = block[-1:].copy()

    def file(self) -> bytes:
        """The whole file, once all rows have come."""
        return b"".join([*self._parts, _chunk(b"IDAT", self._packer.flush()), _chunk(b"IEND", b"")])


def _filtered(block: _Bytes, step: int) -> _Bytes:
    """Filtered rows `[n, 1 + stride]`, each preceded by the number of its filter. The block begins
    with the row above them.

    Args:
        step: bytes per pixel.
    """
    shifted = np.zeros_like(block)
    shifted[:, step:] = block[:, :-step]
    here, left, up, corner = block[1:], shifted[1:], block[:-1], shifted[:-1]
    mean = ((left.astype(np.uint16) + up) // 2).astype(np.uint8)
    ways = np.stack([here, here - left, here - up, here - mean, here - _paeth(left, up, corner)])
    costs = np.abs(ways.view(np.int8).astype(np.int16)).sum(2, dtype=np.int64)
    best = costs.argmin(0)
    rows = np.empty((len(here), 1 + here.shape[1]), np.uint8)
    rows[:, 0] = best
    rows[:, 1:] = ways[best, np.arange(len(here))]
    return rows


def _paeth(left: _Bytes, up: _Bytes, corner: _Bytes) -> _Bytes:
    """The one of three neighbours that is closest to left + up - corner."""
    a, b, c = (side.astype(np.int16) for side in (left, up, corner))
    to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    is_left = (to_left <= to_up) & (to_left <= to_corner)
    return np.where(is_left, left, np.where(to_up <= to_corner, up, corner))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
