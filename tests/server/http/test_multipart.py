"""Reading forms: whatever the chunks, and whatever a client puts in."""

import random
from collections.abc import AsyncIterator

import pytest

from engine.errors import InvalidParameter
from server.http import multipart
from server.http.multipart import Form, read_form

TYPE = "multipart/form-data; boundary=B"


def part(name: str, data: bytes, *, filename: str | None = None) -> bytes:
    suffix = "" if filename is None else f'; filename="{filename}"'
    head = f'--B\r\nContent-Disposition: form-data; name="{name}"{suffix}\r\n\r\n'
    return head.encode() + data + b"\r\n"


async def parse(body: bytes, content_type: str = TYPE, chunk: int = 1 << 16) -> Form:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), chunk):
            yield body[start : start + chunk]

    return await read_form(content_type, chunks())


async def test_parts_by_name_in_order() -> None:
    body = part("a", b"1") + part("f", b"x", filename="../../etc/passwd") + part("a", b"2")
    form = await parse(body + b"--B--\r\n")
    assert [p.text() for p in form["a"]] == ["1", "2"]
    (file,) = form["f"]
    assert file.is_file and bytes(file.data) == b"x"
    with pytest.raises(InvalidParameter, match="not a file"):
        file.text()


async def test_any_chunking_gives_the_same() -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    files = [rng.randbytes(rng.randrange(300)) + b"\r\n-B" for _ in range(4)]
    body = b"".join(part(f"f{i}", data, filename="x") for i, data in enumerate(files)) + b"--B--"
    for _ in range(20):
        form = await parse(body, chunk=rng.randrange(1, 40))
        got = [bytes(form[f"f{i}"][0].data) for i in range(4)]
        assert got == files, f"seed {seed}"


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"", TYPE, "closing boundary"),
        (b"hello", TYPE, "well-formed"),
        (part("a", b"1"), TYPE, "closing boundary"),
        (b"--B\r\n\r\nx\r\n--B--", TYPE, "with a name"),
        (b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n--B--", TYPE, "with a name"),
        (part("n" * 300, b"") + b"--B--", TYPE, "at most 256"),
        (b"--B\r\nX: " + b"y" * 5000 + b"\r\n\r\n\r\n--B--", TYPE, "4096|well-formed"),
        (b"--B\r\n" + b"X" * 4000 + b": " + b"y" * 97 + b"\r\n\r\n--B--", TYPE, "more than 4096"),
        (part("a", b"1") + b"--B--", "multipart/form-data", "no boundary"),
        (part("a", b"1") + b"--B--", "multipart/form-data; boundary=", "no boundary"),
        (b"".join(part("a", b"") for _ in range(129)) + b"--B--", TYPE, "128 parts"),
    ],
)
async def test_bad_bodies(
    body: bytes, content_type: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidParameter, match=words):
        await parse(body, content_type)
    assert caplog.records == []


async def test_the_rest_is_read_before_the_refusal() -> None:
    num_read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal num_read
        for _ in range(5):
            num_read += 1
            yield b"garbage"

    with pytest.raises(InvalidParameter):
        await read_form(TYPE, chunks())
    assert num_read == 5


async def test_text_is_utf8_and_bounded() -> None:
    form = await parse(part("a", "é".encode()) + part("b", b"\xff") + b"--B--")
    assert form["a"][0].text() == "é"
    with pytest.raises(InvalidParameter, match="UTF-8"):
        form["b"][0].text()
    form = await parse(part("a", b"x" * (multipart.MAX_TEXT_BYTES + 1)) + b"--B--")
    with pytest.raises(InvalidParameter, match="at most"):
        form["a"][0].text()
