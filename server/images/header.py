"""Reads the first bytes of a picture file: its format and size, and how much there is to decode.

It takes a few steps of Python, so that pictures which are too large are refused before any library
sees them. Decoding compares the sizes: a file whose size then differs is broken.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.errors import InvalidParameter

MAX_SCANS = 500
"""The most scans in a JPEG file. Encoders write about ten; each goes over the whole picture once
more."""
MAX_SEGMENTS = 4096
"""The most segments in a JPEG file before its first scan."""
MAX_CHUNKS = 1 << 15
"""The most chunks in a PNG file. Encoders write one for every 8 KiB or more."""

_ORIENTATION = 0x0112
_SIDEWAYS = range(5, 9)
"""The orientations of EXIF that exchange width and height."""

Format = Literal["PNG", "JPEG", "WEBP", "GIF"]
UPLOADED: tuple[Format, ...] = ("PNG", "JPEG", "WEBP")
IN_CHATS: tuple[Format, ...] = (*UPLOADED, "GIF")

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_EXIF_MAGIC = b"Exif\0\0"
_BEGINNINGS = (
    (_PNG_MAGIC, "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"%PDF", "PDF"),
    (b"<", "SVG, HTML or XML"),
)

_START_OF_SCAN = 0xDA
_APP1 = 0xE1
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers of JPEG segments that contain the size."""
_BARE = {0x00, 0x01, *range(0xD0, 0xD9)}
"""Markers without a segment, and bytes that are not markers."""


@dataclass(frozen=True, slots=True)
class Header:
    """The size in a file's header. If its orientation turns the picture, width and height are
    exchanged."""

    format: Format
    width: int
    height: int


class _Broken(Exception):
    """The file cannot be read any further."""


def read_header(
    data: bytes,
    *,
    param: str,
    max_pixels: int,
    max_side: int,
    formats: tuple[Format, ...] = UPLOADED,
) -> Header:
    """The checked header of a picture file.

    Args:
        param: the field that messages name.

    Raises:
        InvalidParameter: the file has none of the formats, is broken at its beginning, or too
            large.
    """
    format = _format(data, param, formats)
    sizes = {"PNG": _png_size, "JPEG": _jpeg_size, "WEBP": _webp_size, "GIF": _gif_size}
    read = sizes[format]
    try:
        width, height = read(data)
    except (_Broken, struct.error):
        raise broken(param, format) from None
    if width * height > max_pixels or max(width, height) > max_side:
        raise InvalidParameter(
            f"{param} is {width}x{height} pixels; at most {max_pixels} pixels in total and "
            f"{max_side} a side are allowed; scale it down",
            param=param,
        )
    # In a scan the encoder puts a zero after such a byte, so this counts too many only if other
    # segments hold pictures.
    num_scans = data.count(b"\xff\xda") if format == "JPEG" else 0
    if num_scans > MAX_SCANS:
        raise InvalidParameter(
            f"{param} is a JPEG file with {num_scans} scans; at most {MAX_SCANS} are decoded; "
            "save the picture again",
            param=param,
        )
    if format == "PNG" and _has_many_chunks(data):
        raise InvalidParameter(
            f"{param} is a PNG file with more than {MAX_CHUNKS} chunks, the limit; save the "
            "picture again",
            param=param,
        )
    return Header(format, width, height)


def upright_size(data: bytes, header: Header) -> tuple[int, int]:
    """Width and height once the picture is turned as its EXIF data say."""
    if header.format == "GIF":
        return header.width, header.height
    find = {"PNG": _png_exif, "JPEG": _jpeg_exif, "WEBP": _webp_exif}[header.format]
    try:
        is_sideways = _orientation(find(data).removeprefix(_EXIF_MAGIC)) in _SIDEWAYS
    except (_Broken, struct.error):
        is_sideways = False
    return (header.height, header.width) if is_sideways else (header.width, header.height)


def broken(param: str, format: str) -> InvalidParameter:
    """The error for a file that cannot be decoded."""
    return InvalidParameter(
        f"{param} cannot be decoded: the {format} file is truncated or broken; save the picture "
        "again",
        param=param,
    )


def _format(data: bytes, param: str, formats: tuple[Format, ...]) -> Format:
    advice = "send PNG, JPEG" + (", WebP or GIF" if "GIF" in formats else " or WebP")
    if not data:
        raise InvalidParameter(f"{param} is empty (0 bytes); {advice}", param=param)
    found = next((name for magic, name in _BEGINNINGS if data.startswith(magic)), None)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        found = "WEBP"
    for format in formats:
        if format == found:
            return format
    if data[4:8] == b"ftyp":
        found = "AVIF, HEIC or video"
    what = "not a picture that can be read" if found is None else f"a {found} file"
    raise InvalidParameter(f"{param} is {what}; {advice}", param=param)


def _png_size(data: bytes) -> tuple[int, int]:
    kind, width, height = struct.unpack_from(">4sII", data, len(_PNG_MAGIC) + 4)
    return _checked(kind == b"IHDR", width, height)


def _has_many_chunks(data: bytes) -> bool:
    at = len(_PNG_MAGIC)
    for _ in range(MAX_CHUNKS):
        if at + 4 > len(data):
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return at < len(data)


def _webp_size(data: bytes) -> tuple[int, int]:
    kind, start = data[12:16], 20
    if kind == b"VP8X":
        packed = int.from_bytes(data[start + 4 : start + 10], "little")
        return _checked(len(data) >= start + 10, (packed & 0xFFFFFF) + 1, (packed >> 24) + 1)
    if kind == b"VP8L":
        signature, packed = struct.unpack_from("<BI", data, start)
        is_known = signature == 0x2F
        return _checked(is_known, (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1)
    start_code, width, height = struct.unpack_from("<3sHH", data, start + 3)
    is_known = kind == b"VP8 " and start_code == b"\x9d\x01\x2a"
    return _checked(is_known, width & 0x3FFF, height & 0x3FFF)


def _gif_size(data: bytes) -> tuple[int, int]:
    return _checked(True, *struct.unpack_from("<HH", data, 6))


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """The size of a JPEG file: as in libraries, the last one before the first scan counts."""
    size: tuple[int, int] | None = None
    for marker, start in _jpeg_segments(data):
        if marker == _START_OF_SCAN:
            break
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, start + 3)
            size = width, height
    if size is None:
        raise _Broken
    return _checked(True, *size)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Markers, and the position of their segments, which begin with their length in two bytes."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            raise _Broken
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        at += 2
        if marker in _BARE:
            continue
        yield marker, at
        at += struct.unpack_from(">H", data, at)[0]
    raise _Broken


def _png_exif(data: bytes) -> bytes:
    at = len(_PNG_MAGIC)
    for _ in range(MAX_CHUNKS):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            return data[at + 8 : at + 8 + size]
        at += 12 + size
    raise _Broken


def _jpeg_exif(data: bytes) -> bytes:
    for marker, start in _jpeg_segments(data):
        if marker == _START_OF_SCAN:
            break
        size = struct.unpack_from(">H", data, start)[0]
        if marker == _APP1 and data.startswith(_EXIF_MAGIC, start + 2):
            return data[start + 2 : start + size]
    raise _Broken


def _webp_exif(data: bytes) -> bytes:
    at = 12
    for _ in range(MAX_CHUNKS):
        kind, size = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            return data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    raise _Broken


def _orientation(tiff: bytes) -> int:
    """The orientation in EXIF data; 1 if they hold none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        raise _Broken
    at = struct.unpack_from(f"{order}I", tiff, 4)[0]
    for entry in range(struct.unpack_from(f"{order}H", tiff, at)[0]):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * entry)
        if tag == _ORIENTATION:
            return int(value)
    return 1


def _checked(is_known: bool, width: int, height: int) -> tuple[int, int]:
    if not is_known or width == 0 or height == 0:
        raise _Broken
    return width, height
