"""Large bodies: what is refused unread, and what others notice of the rest."""

import asyncio
import gc
import random
import struct
from typing import Any

import msgspec
import pytest
from starlette.requests import Request

from engine.errors import InvalidParameter
from server.http import json_route
from server.http.json_route import MAX_FLOATS


def test_numbers_are_those_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """msgspec's own reading of one near the ends of a double takes 10 microseconds."""
    read: list[str] = []
    own = json_route._Floats.read

    def note(self: Any, text: str) -> float:
        read.append(text)
        return own(self, text)

    monkeypatch.setattr(json_route._Floats, "read", note)
    texts = ["1.5", "-0.0", "1e300", "4.9e-324", "2E+2", "1e-400"]
    doubles = (struct.unpack("d", random.randbytes(8))[0] for _ in range(200))
    texts += [f"{number:.17e}" for number in doubles if abs(number) <= 1.7e308]
    numbers = json_route._decode(f"[{','.join(texts)}, 7]".encode())
    assert read == texts
    assert list(map(repr, numbers)) == [*(repr(float(text)) for text in texts), "7"]


@pytest.mark.parametrize("text", ["1e400", "-1e309"])
def test_numbers_beyond_a_double_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="out of range"):
        json_route._decode(f'{{"number": {text}}}'.encode())


def test_numbers_that_are_no_integers_are_few() -> None:
    fits = b"[" + b",".join([b"1e300"] * MAX_FLOATS) + b"]"
    assert len(json_route._decode(fits)) == MAX_FLOATS
    with pytest.raises(InvalidParameter, match=f"more than {MAX_FLOATS} numbers with a point or"):
        json_route._decode(fits[:-1] + b",1.0]")


def test_long_numbers_count_as_several() -> None:
    """Python reads one of a thousand digits fifty times as long as one of ten."""
    long = b"0." + b"7" * 1000
    num = MAX_FLOATS // (1 + len(long) // 24)
    assert len(json_route._decode(b"[" + b",".join([long] * num) + b"]")) == num
    with pytest.raises(InvalidParameter, match="numbers with a point or"):
        json_route._decode(b"[" + b",".join([long] * (num + 2)) + b"]")


def test_nothing_is_collected_while_a_body_is_decoded() -> None:
    collected: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        collected.append(phase)

    body = b"[" + b",".join([b"[]"] * 50_000) + b"]"
    thresholds = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(700, 10, 10)
    try:
        msgspec.json.decode(body)
        assert collected.count("start") > 10  # it is without precautions
        gc.collect()
        collected.clear()
        content = json_route._decode(body)
        assert collected.count("start") <= 1  # of what is there when it is done
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(note)
    assert len(content) == 50_000
    assert gc.isenabled()


def test_garbage_is_collected_again_after_a_body_that_is_no_json() -> None:
    for body in (b"[", b"]", b'"\xff"', b"[1e999]"):
        with pytest.raises(InvalidParameter):
            json_route._decode(body)
        assert gc.isenabled()


async def test_others_have_a_turn_before_and_after_a_long_body_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns: list[str] = []
    loop = asyncio.get_running_loop()

    def decode(body: bytes) -> str:
        turns.append("decode")
        loop.call_soon(turns.append, "other")
        return "content"

    async def receive() -> dict[str, Any]:
        loop.call_soon(turns.append, "other")
        return {"type": "http.request", "body": b" " * (json_route._LONG + 1)}

    monkeypatch.setattr(json_route, "_decode", decode)
    request = Request({"type": "http", "headers": []}, receive)
    assert (await json_route._JsonRequest.read(request)).content == "content"
    assert turns == ["other", "decode", "other"]


def test_marks_are_not_counted_to_the_end_of_too_many() -> None:
    body = b",[" * 500_000
    found = json_route._count(body, 1000, b",", b"[")
    assert 1000 < found <= 1000 + 2 * json_route._WINDOW
    assert json_route._count(body, 1 << 20, b",", b"[") == 1_000_000
