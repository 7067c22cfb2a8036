import random

import pytest

from loadtest.sse import EventParser

STREAM = (
    b': heartbeat\n\ndata: {"a": "h\xc3\xa9"}\n\nevent: x\nid: 7\ndata:first\ndata: second\n\n'
    b"data: crlf\r\n\r\n: again\n\n\n\ndata: [DONE]\n\n"
)
EVENTS = ['{"a": "hé"}'.encode(), b"first\nsecond", b"crlf", b"[DONE]"]


@pytest.mark.parametrize("size", range(1, len(STREAM) + 1))
def test_events_are_the_same_however_the_stream_is_cut(size: int) -> None:
    parser = EventParser()
    events = []
    for start in range(0, len(STREAM), size):
        events += parser.feed(STREAM[start : start + size])
    assert events == EVENTS


def test_random_cuts() -> None:
    rng = random.Random(random.getrandbits(32))
    parser = EventParser()
    events, rest = [], STREAM * 20
    while rest:
        size = rng.randint(0, 40)
        events += parser.feed(rest[:size])
        rest = rest[size:]
    assert events == EVENTS * 20


def test_an_unfinished_event_is_not_an_event() -> None:
    parser = EventParser()
    assert parser.feed(b"data: half\n") == []
    assert parser.feed(b"") == []
    assert parser.feed(b"\n") == [b"half"]
