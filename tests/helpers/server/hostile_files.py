"""Makes files that cost far more to open than to send."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image


def file(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def jpeg_of_scans(num_scans: int, side: int = 64) -> bytes:
    """Make a progressive JPEG whose last scan is repeated again and again: each time the whole
    picture is processed once more."""
    whole = file(Image.new("RGB", (side, side), (9, 99, 200)), "JPEG", progressive=True)
    start = whole.rindex(b"\xff\xda")
    return (
        whole[:start] + whole[start:-2] * (num_scans - whole.count(b"\xff\xda") + 1) + b"\xff\xd9"
    )


def jpeg_of_segments(num_segments: int) -> bytes:
    """Make a JPEG with many empty comments before the picture."""
    whole = file(Image.new("RGB", (8, 8)), "JPEG")
    return whole[:2] + b"\xff\xfe\0\2" * num_segments + whole[2:]


def png_of_chunks(num_chunks: int) -> bytes:
    """Make a PNG with many unknown chunks before the picture."""
    whole = file(Image.new("RGB", (8, 8)), "PNG")
    after_header = 8 + 25
    return whole[:after_header] + chunk(b"teSt", b"") * num_chunks + whole[after_header:]


def png_of_texts(num_texts: int, num_chars: int) -> bytes:
    """Make a PNG of compressed texts that are a thousand times as long as what is sent."""
    whole = file(Image.new("RGB", (8, 8)), "PNG")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * num_chars))
    return whole[: 8 + 25] + text * num_texts + whole[8 + 25 :]


def png_of_size(width: int, height: int) -> bytes:
    """Make a PNG that claims a size but has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def frames(format: str, num_frames: int) -> bytes:
    """Make an animation of many frames."""
    noise = np.random.default_rng(random.randrange(1 << 30)).integers(
        0, 256, (num_frames, 8, 8, 3), np.uint8
    )
    pictures = [Image.fromarray(one) for one in noise]
    return file(pictures[0], format, save_all=True, append_images=pictures[1:], duration=10)


def truncated(format: str) -> bytes:
    """Make a file that is cut off anywhere but right at its end."""
    whole = file(Image.fromarray(np.full((64, 64, 3), 7, np.uint8)), format)
    return whole[: random.randrange(1, len(whole) * 3 // 4)]
