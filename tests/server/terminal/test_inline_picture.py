"""Pictures in a terminal: the three ways to write them, read again, and who is asked."""

import base64
import io
import random
import re

import numpy as np
import pytest
from PIL import Image

from server.terminal import inline_picture


@pytest.fixture
def picture():
    """A small picture of few colours, part of it transparent."""
    width, height = random.randrange(1, 40), random.randrange(1, 40)
    palette = np.random.randint(0, 256, (8, 4), np.uint8)
    palette[:, 3] = np.random.choice([0, 255], 8)
    return Image.fromarray(palette[np.random.randint(0, 8, (height, width))], "RGBA")


def sixel_pixels(text):
    """What a terminal would paint: RGB in percent, and which pixels it painted."""
    body = re.fullmatch(r"\x1bP0;1q(.*)\x1b\\", text, re.DOTALL)[1]
    width, height = map(int, re.match(r'"1;1;(\d+);(\d+)', body).groups())
    pixels, is_painted = np.zeros((height, width, 3), int), np.zeros((height, width), bool)
    colours, colour, top, left = {}, None, 0, 0
    token = re.compile(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|([$-])")
    for one in token.finditer(body[re.match(r'"[\d;]+', body).end() :]):
        if one[1]:
            colours[int(one[1])] = [int(one[n]) for n in (2, 3, 4)]
        elif one[5]:
            colour = colours[int(one[5])]
        elif one[9]:
            left, top = 0, top + 6 * (one[9] == "-")
        else:
            run = slice(left, left + int(one[6] or 1))
            for bit in range(6):
                if ord(one[7] or one[8]) - 63 >> bit & 1:
                    assert not is_painted[top + bit, run].any()
                    pixels[top + bit, run], is_painted[top + bit, run] = colour, True
            left = run.stop
    return pixels, is_painted


def test_sixel(picture):
    pixels, is_painted = sixel_pixels(inline_picture._as_sixel(picture))
    expected = np.asarray(picture)
    assert (is_painted == (expected[..., 3] == 255)).all()
    colours = expected[..., :3].astype(int) * 100 // 255
    assert (pixels[is_painted] == colours[is_painted]).all()


def opened(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_kitty():
    noise = np.random.randint(0, 256, (60, 70, 4), np.uint8)
    text = inline_picture._as_kitty(Image.fromarray(noise, "RGBA"))
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in chunks) == text
    assert len(chunks) > 2 and chunks[0][0] == "a=T,f=100,q=2,m=1"
    assert [keys for keys, _ in chunks[1:]] == ["m=1"] * (len(chunks) - 2) + ["m=0"]
    assert all(len(data) <= 4096 for _, data in chunks)
    assert (opened(base64.b64decode("".join(data for _, data in chunks))) == noise).all()


def test_iterm2(picture):
    text = inline_picture._as_iterm2(picture)
    found = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+);[^:]*:([^\x07]*)\x07", text)
    data = base64.b64decode(found[2])
    assert len(data) == int(found[1])
    assert (opened(data) == np.asarray(picture)).all()


@pytest.mark.parametrize(
    ("variables", "answer", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, None, "kitty"),
        ({"TERM": "xterm", "KITTY_WINDOW_ID": "3"}, None, "kitty"),
        ({"TERM": "xterm", "TERM_PROGRAM": "iTerm.app"}, None, "iterm2"),
        ({"TERM": "xterm", "LC_TERMINAL": "iTerm2"}, None, "iterm2"),
        ({"TERM": "dumb"}, None, None),
        ({"TERM": "linux"}, None, None),
        ({"TERM": "xterm"}, b"\x1b_Gi=31;OK\x1b\\\x1b[?62;c", "kitty"),
        ({"TERM": "xterm"}, b"\x1b[?62;4;22c", "sixel"),
        ({"TERM": "xterm"}, b"\x1b[?64;1c", None),
        ({"TERM": "xterm"}, b"", None),
        ({"TERM": "tmux", "TMUX": "x", "KITTY_WINDOW_ID": "3"}, b"\x1b[?1;2;4c", "sixel"),
        ({"TERM": "screen", "STY": "x", "LC_TERMINAL": "iTerm2"}, b"\x1b[?1;2c", None),
    ],
)
def test_terminals_are_recognised_or_asked(variables, answer, protocol, monkeypatch):
    for name in ("TERM", "TERM_PROGRAM", "LC_TERMINAL", "KITTY_WINDOW_ID", "TMUX", "STY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(inline_picture, "_ask", lambda: answer)
    inline_picture.terminal_protocol.cache_clear()
    assert inline_picture.terminal_protocol() == protocol
    inline_picture.terminal_protocol.cache_clear()
