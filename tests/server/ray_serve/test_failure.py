"""What a client gets when the server that answered it is gone, in the form of each API."""

import json

import pytest

from engine.errors import EngineDead
from server.ray_serve.call import Head
from server.ray_serve.failure import failed_answer, last_event

LOST = EngineDead("gone")
EVENTS = Head(200, [(b"content-type", b"text/event-stream; charset=utf-8")])


@pytest.mark.parametrize(
    ("path", "has_done"),
    [("/v1/chat/completions", True), ("/v1/responses", False), ("/v1/messages", False)],
)
def test_a_stream_of_events_ends_with_an_error(path, has_done):
    event, *done = last_event(path, EVENTS, LOST).decode().strip().split("\n\n")
    name, data = event.split("\n")
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))["error"]
    assert error["type"] and error["message"]
    assert done == ["data: [DONE]"] * has_done


def test_a_stream_of_lines_ends_with_an_error():
    lines = Head(200, [(b"content-type", b"application/x-ndjson")])
    last = last_event("/api/chat", lines, LOST)
    assert last.endswith(b"\n") and set(json.loads(last)) == {"error"}


def test_an_answer_that_is_no_stream_is_not_mended():
    assert last_event("/v1/models", Head(200, [(b"content-type", b"image/png")]), LOST) is None
    assert last_event("/v1/models", Head(200, []), LOST) is None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat", "/x"])
def test_a_request_without_an_answer_may_be_sent_again(path):
    answer = failed_answer(path, LOST)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert json.loads(answer.body)["error"]
