"""`tandem top`: what it reads, how fast counters grow, and what it shows."""

import io
import json
import random
import re
from contextlib import nullcontext
from dataclasses import replace

import httpx
import pytest
from rich.console import Console

from server.settings import ClientSettings
from server.terminal.client import ServerProblem
from server.terminal.top import command
from server.terminal.top.reading import growth, read
from server.terminal.top.view import view

METRICS = """\
# HELP tandem_num_requests_running Sequences in the running batch.
# TYPE tandem_num_requests_running gauge
tandem_num_requests_running{{model_name="a \\"b\\""}} 3.0
tandem_num_requests_waiting{{model_name="a \\"b\\""}} 2.0
tandem_image_num_running{{model_name="painter"}} 1.0
tandem_image_num_waiting{{model_name="painter"}} 4.0
tandem_kv_cache_usage_ratio{{model_name="a \\"b\\""}} 0.25
# TYPE tandem_generation_tokens counter
tandem_generation_tokens_total{{model_name="a \\"b\\"",adapter=""}} {tokens}
tandem_generation_tokens_total{{model_name="a \\"b\\"",adapter="x"}} 5.0
tandem_image_images_total{{model_name="painter",outcome="completed"}} {images}
tandem_image_images_total{{model_name="painter",outcome="failed"}} 70.0
tandem_memory_held_bytes{{model_name="a \\"b\\"",device="cpu"}} 1073741824.0
tandem_memory_held_bytes{{model_name="painter",device="cpu"}} 536870912.0
tandem_memory_budget_bytes{{device="cpu"}} 4294967296.0
tandem_http_requests_total{{route="/x",status="200"}} 1.0
"""
STATE = {"model": 'a "b"', "phase": "ready", "progress": None, "detail": None}
LOADING = {"model": "painter", "phase": "loading", "progress": 0.4, "detail": "reading\x1b[2J"}
REQUEST = {
    "id": "chatcmpl-1",
    "kind": "text",
    "operation": None,
    "model": 'a "b"',
    "status": "running",
    "created": 0,
    "progress": None,
    "completion_tokens": 30,
}
DRAWING = {**REQUEST, "id": "img\x1b[1m", "model": "painter", "operation": "draw", "progress": 0.5}


class Server:
    """Answers with these numbers."""

    def __init__(self):
        self.tokens, self.images, self.requests = 100.0, 2.0, [REQUEST, DRAWING]
        self.is_gone = False
        self.client = httpx.Client(
            transport=httpx.MockTransport(self.handle), base_url="http://server"
        )

    def handle(self, request):
        if self.is_gone:
            raise httpx.ConnectError("refused")
        if request.url.path == "/ready":
            return httpx.Response(503, json={"phase": "loading", "models": [STATE, LOADING]})
        if request.url.path == "/metrics":
            text = METRICS.format(tokens=self.tokens, images=self.images)
            return httpx.Response(200, text=text)
        return httpx.Response(200, json={"data": self.requests})


@pytest.fixture
def server():
    server = Server()
    with server.client:
        yield server


def shown(*readings, problem=None):
    before, now = readings
    console = Console(file=io.StringIO(), width=160)
    console.print(view("http://server", before, now, problem))
    return console.file.getvalue()


def test_numbers_of_all_kinds_are_added(server):
    reading = read(server.client)
    assert (reading.running(), reading.waiting()) == (4, 6)
    assert reading.running(model_name="painter") == 1
    assert reading.tokens() == reading.tokens('a "b"') + 30 == 100 + 5 + 30 + 30
    assert reading.images() == 2


def test_counters_grow_per_second_and_never_shrink(server):
    before = read(server.client)
    more, seconds = random.randrange(1, 500), random.uniform(0.5, 3)
    server.tokens += more
    now = replace(read(server.client), time_s=before.time_s + seconds)
    assert growth(before, now, lambda r: r.tokens()) == pytest.approx(more / seconds)
    assert growth(now, replace(before, time_s=now.time_s + 1), lambda r: r.tokens()) == 0
    assert growth(None, now, lambda r: r.tokens()) == 0
    assert growth(now, now, lambda r: r.tokens()) == 0


def test_the_view_shows_models_memory_and_requests(server):
    before = read(server.client)
    server.tokens, server.images = 150.0, 3.0
    now = replace(read(server.client), time_s=before.time_s + 2)
    lines = [re.sub(" +", " ", line).strip() for line in shown(before, now).splitlines()]
    assert lines[0] == (
        "http://server is loading: 4 running, 6 waiting, 25.0 tokens/s, 0.50 images/s"
    )
    assert 'a "b" ready 3 2 25% 25.0 1.00 GiB' in lines
    assert "painter loading 40% reading�[2J 1 4 0.50 0.50 GiB" in lines
    [memory] = [line for line in lines if line.startswith("memory of cpu")]
    assert memory.endswith("1.50 GiB of 4.00 GiB are reserved")
    text, drawing = lines[-2:]
    assert text.startswith('chatcmpl-1 text a "b" running') and text.endswith("30 tokens")
    assert drawing.startswith("img�[1m draw painter running") and drawing.endswith("50%")


def test_many_requests_do_not_fill_the_screen(server):
    server.requests = [REQUEST] * 500
    reading = read(server.client)
    text = shown(reading, reading)
    assert "and 470 more" in text and len(text.splitlines()) < 45
    server.requests = []
    assert "No requests are in work." in shown(reading, read(server.client))


def test_one_snapshot_in_a_pipe(server, monkeypatch, capsys):
    monkeypatch.setattr(command, "open_client", lambda settings: nullcontext(server.client))
    monkeypatch.setattr(command, "_INTERVAL_S", 0.01)
    settings = ClientSettings(url="http://server")
    assert command.top_command(settings, once=False) == 0
    assert "painter" in capsys.readouterr().out


def test_no_server_is_one_line(capsys):
    assert command.top_command(ClientSettings(url="http://127.0.0.1:9"), once=True) == 1
    assert "no server answers at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/ready", [1]), ("/ready", {}), ("/v1/requests", {"data": None}), ("/metrics", "tandem_x{")],
)
def test_another_kind_of_server_is_one_line(path, answer, server):
    handle = server.handle

    def odd(request):
        if request.url.path == path:
            text = answer if isinstance(answer, str) else json.dumps(answer)
            return httpx.Response(200, text=text)
        return handle(request)

    transport = httpx.MockTransport(odd)
    with httpx.Client(transport=transport, base_url="http://server") as client:
        if path == "/metrics":
            assert read(client).samples == []
        else:
            with pytest.raises(ServerProblem, match="does not answer like a Tandem server"):
                read(client)


def test_a_server_that_is_gone_leaves_the_last_reading(server):
    reading = read(server.client)
    server.is_gone = True
    with pytest.raises(ServerProblem) as caught:
        read(server.client)
    text = shown(reading, reading, problem=str(caught.value))
    assert "no server answers" in text and 'a "b"' in text
