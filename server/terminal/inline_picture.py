"""Shows a picture in the terminal, by the protocol that the terminal supports: kitty's, iTerm2's or
sixel.

Variables of the environment say what some terminals are; others are asked. Where a terminal shows
no pictures, nothing is written.
"""

import base64
import contextlib
import fcntl
import functools
import io
import os
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image

from server.settings import TerminalSettings
from server.terminal.keys import unbuffered

Protocol = Literal["kitty", "iterm2", "sixel"]

_ASK_S = 1.0
"""How long the terminal may take to answer, which may be far away."""
_QUESTION = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c"
"""Whether it takes a picture of a pixel in kitty's way, and then its attributes, which every
terminal tells."""
_KITTY_OK = re.compile(rb"\x1b_Gi=31;OK\x1b\\")
_ATTRIBUTES = re.compile(rb"\x1b\[\?([\d;]*)c")
_SIXEL = b"4"
_MUTE_TERMS = ("", "dumb", "linux", "unknown")
"""Terminals that show no pictures, and may print a question instead of answering it."""
_KITTY_CHUNK = 4096
_CELL = 8, 16
"""Width and height of a character in pixels, where the terminal does not say."""
_HEIGHT = 2 / 3
"""The most of the terminal's height that a picture takes."""
_MAX_SIDE = 1600


def show_picture(data: bytes) -> None:
    """Write the picture to standard output, if that is a terminal that shows pictures."""
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        return
    protocol = terminal_protocol()
    if protocol is None:
        return
    with contextlib.suppress(OSError, ValueError, Image.DecompressionBombError):
        picture = Image.open(io.BytesIO(data)).convert("RGBA")
        picture.thumbnail(_most_pixels())
        sys.stdout.write(_ENCODERS[protocol](picture) + "\n")
        sys.stdout.flush()


@functools.cache
def terminal_protocol() -> Protocol | None:
    """The way to show pictures in this terminal; None if there is none."""
    known = TerminalSettings()
    # tmux and screen keep the variables of the terminal around them, and most of its codes away.
    if not (known.tmux or known.sty):
        if known.kitty_window_id or "kitty" in known.term or known.term_program == "ghostty":
            return "kitty"
        if known.term_program in ("iTerm.app", "WezTerm") or known.lc_terminal == "iTerm2":
            return "iterm2"
    return None if known.term in _MUTE_TERMS else _protocol_of(_ask())


def _ask() -> bytes:
    """The terminal's answer, or what came of it in time."""
    answer = b""
    with unbuffered(sys.stdin.fileno()) as terminal:
        os.write(sys.stdout.fileno(), _QUESTION)
        deadline_s = time.monotonic() + _ASK_S
        while not _ATTRIBUTES.search(answer):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([terminal], [], [], left_s)[0]:
                break
            answer += os.read(terminal, 1024)
    return answer


def _protocol_of(answer: bytes) -> Protocol | None:
    if _KITTY_OK.search(answer):
        return "kitty"
    attributes = _ATTRIBUTES.search(answer)
    has_sixel = attributes is not None and _SIXEL in attributes[1].split(b";")
    return "sixel" if has_sixel else None


def _most_pixels() -> tuple[int, int]:
    """The room for a picture."""
    rows, columns, width, height = struct.unpack(
        "HHHH", fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    )
    width = width or (columns or 80) * _CELL[0]
    height = height or (rows or 24) * _CELL[1]
    return min(width, _MAX_SIDE), max(1, min(int(height * _HEIGHT), _MAX_SIDE))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _as_kitty(picture: Image.Image) -> str:
    text = base64.b64encode(_png(picture)).decode()
    chunks = [text[at : at + _KITTY_CHUNK] for at in range(0, len(text), _KITTY_CHUNK)]
    codes = []
    for number, chunk in enumerate(chunks):
        what = "a=T,f=100,q=2," if number == 0 else ""
        codes.append(f"\x1b_G{what}m={int(number < len(chunks) - 1)};{chunk}\x1b\\")
    return "".join(codes)


def _as_iterm2(picture: Image.Image) -> str:
    data = _png(picture)
    text = base64.b64encode(data).decode()
    return f"\x1b]1337;File=inline=1;size={len(data)};preserveAspectRatio=1:{text}\x07"


def _as_sixel(picture: Image.Image) -> str:
    """Bands of six lines; in each band a line of characters for each colour, one per column, whose
    bits are the pixels with that colour. Pixels that are rather transparent have none."""
    plain = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    indices = np.where(np.asarray(picture)[..., 3] < 128, -1, np.asarray(plain).astype(np.int16))
    palette = np.asarray(plain.getpalette(), np.int32).reshape(-1, 3) * 100 // 255
    colours = (f"#{n};2;{r};{g};{b}" for n, (r, g, b) in enumerate(palette))
    bands = (indices[top : top + 6] for top in range(0, len(indices), 6))
    size = f'"1;1;{picture.width};{picture.height}'
    return f"\x1bP0;1q{size}{''.join(colours)}{'-'.join(map(_band, bands))}\x1b\\"


def _band(band: "np.ndarray[tuple[int, int], np.dtype[np.int16]]") -> str:
    bits = 1 << np.arange(len(band))[:, None]
    lines = []
    for colour in np.unique(band):
        if colour >= 0:
            columns = ((band == colour) * bits).sum(0) + 63
            text = columns.astype(np.uint8).tobytes().decode("ascii")
            lines.append(f"#{colour}{_REPEATED.sub(_shortened, text)}")
    return "$".join(lines)


_REPEATED = re.compile(r"(.)\1{3,}")


def _shortened(run: "re.Match[str]") -> str:
    return f"!{len(run[0])}{run[1]}"


_ENCODERS: dict[Protocol, Callable[[Image.Image], str]] = {
    "kitty": _as_kitty,
    "iterm2": _as_iterm2,
    "sixel": _as_sixel,
}
