"""`tandem draw`, `upscale` and `cutout`: what they send, show and write."""

import base64
import random
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.progress import Progress
from typer.testing import CliRunner

from server.cli import app
from server.settings import ClientSettings
from server.terminal import pictures
from server.terminal.pictures import PictureOrder, picture_command

SETTINGS = ClientSettings(url="http://server", api_key="k")
FILE = random.randbytes(100)
ANSWER = {
    "data": [{"b64_json": base64.b64encode(FILE).decode()}],
    "size": "8x8",
    "seed": 7,
    "warnings": ["the word fox is not known"],
}


class Server:
    """Answers a picture once it has been asked so many times how far it is."""

    def __init__(self, num_polls: int = 2) -> None:
        self.answer: httpx.Response | Exception = httpx.Response(200, json=ANSWER)
        self.states: list[dict[str, Any]] = []
        self.requests: list[httpx.Request] = []
        self.polls: list[str] = []
        self._num_polls = num_polls
        self._polled = threading.Event()

    def handle(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            request.read()
            self.requests.append(request)
            assert self._polled.wait(10)
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer
        if request.method == "DELETE":
            self.requests.append(request)
            self._polled.set()  # the request that is cancelled ends
            return httpx.Response(200, json={})
        if request.url.path == "/ready":
            return httpx.Response(200, json={"models": self.states})
        self.polls.append(request.url.params["id"])
        if len(self.polls) >= self._num_polls:
            self._polled.set()
        running = {"status": "running", "progress": 0.5}
        return httpx.Response(200, json={"data": [running] if len(self.polls) > 1 else []})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    client = httpx.Client(transport=httpx.MockTransport(server.handle), base_url="http://server")
    monkeypatch.setattr(pictures, "open_client", lambda settings: client)
    monkeypatch.setattr(pictures, "_POLL_S", 0.01)
    return server


def order(output: Path, **changes: Any) -> PictureOrder:
    fields: dict[str, Any] = {"path": "/v1/images/generations", "fields": {"prompt": "a fox"}}
    return PictureOrder(**{**fields, "output": output, "doing": "drawing", **changes})


def test_a_picture_is_asked_for_and_written(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a b.JPG"
    assert picture_command(SETTINGS, order(file)) == 0
    assert file.read_bytes() == FILE
    [request] = server.requests
    assert b'"output_format":"jpeg"' in request.content.replace(b": ", b":")
    assert set(server.polls) == {request.headers["x-request-id"]}
    captured = capsys.readouterr()
    assert captured.out == f"{file}: 8x8, seed 7\n"
    assert captured.err == "warning: the word fox is not known\n"


def test_a_picture_is_sent_as_a_file(server: Server, tmp_path: Path) -> None:
    image = tmp_path / "in.png"
    image.write_bytes(random.randbytes(50))
    sent = order(tmp_path / "out.webp", path="/v1/images/upscale", fields={"scale": 2}, image=image)
    assert picture_command(SETTINGS, sent) == 0
    [request] = server.requests
    assert request.headers["content-type"].startswith("multipart/form-data")
    assert image.read_bytes() in request.content
    assert b'name="scale"\r\n\r\n2\r\n' in request.content
    assert b'name="output_format"\r\n\r\nwebp\r\n' in request.content


@pytest.mark.parametrize(
    ("output", "image", "words"),
    [
        ("image", None, "end it in .png, .jpg"),
        ("image.gif", None, "end it in .png, .jpg"),
        ("out.png", "missing.png", "missing.png cannot be read: No such file"),
        ("no/folder/out.png", None, "cannot be written: No such file"),
    ],
)
def test_files_that_cannot_be_used(
    output: str,
    image: str | None,
    words: str,
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = order(tmp_path / output, image=None if image is None else tmp_path / image)
    assert picture_command(SETTINGS, given) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(400, json={"error": {"message": "no image model"}}), "no image model"),
        (httpx.Response(200, text="<html>"), "does not answer like a Tandem server"),
        (httpx.ConnectError("refused"), "no server answers at http://server"),
    ],
)
def test_a_refusal_is_one_line(
    answer: Any, words: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = answer
    file = tmp_path / "image.png"
    assert picture_command(SETTINGS, order(file)) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not file.exists()


def test_an_interrupt_cancels_the_request(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "_progress_of", interrupt)
    assert picture_command(SETTINGS, order(tmp_path / "image.png")) == 130
    request, cancelled = server.requests
    assert cancelled.method == "DELETE"
    assert cancelled.url.path == f"/v1/requests/{request.headers['x-request-id']}"


def test_the_clock_goes_on_after_a_whole_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    bars: list[Progress] = []
    start = Progress.start
    monkeypatch.setattr(Progress, "start", lambda bar: (bars.append(bar), start(bar))[1])
    with pictures._progress() as tell:
        tell(1.0, "5 of 5 MB")
        tell(None, "compiling")
        [task] = bars[0].tasks
        assert task.finished_time is None


def test_progress_is_the_requests_or_that_of_a_model_it_waits_for(server: Server) -> None:
    client = httpx.Client(transport=httpx.MockTransport(server.handle), base_url="http://server")
    ready = {"model": "m", "phase": "ready", "progress": None, "detail": None}
    coming = {"model": "u", "phase": "downloading", "progress": 0.2, "detail": "1 of 5 MB"}
    server.states = [ready, coming]
    with client:
        assert pictures._progress_of(client, "r", "drawing") == (0.2, "1 of 5 MB")
        server.polls, server.states = [], [ready]
        assert pictures._progress_of(client, "r", "drawing") == (None, "drawing")
        assert pictures._progress_of(client, "r", "drawing") == (0.5, "drawing")


@pytest.mark.parametrize(
    ("words", "path", "fields", "output"),
    [
        (
            ["draw", "a fox", "--seed", "3", "--size", "64x64"],
            "/v1/images/generations",
            {"prompt": "a fox", "seed": 3, "size": "64x64"},
            "image.png",
        ),
        (
            ["draw", "a fox", "--then", "enlarge", "--then", "matte"],
            "/v1/images/generations",
            {"prompt": "a fox", "then": ({"operation": "enlarge"}, {"operation": "matte"})},
            "image.png",
        ),
        (
            ["upscale", "d/a.jpg", "--scale", "2"],
            "/v1/images/upscale",
            {"scale": 2},
            "d/a-large.png",
        ),
        (
            ["cutout", "a.png", "-o", "b.webp", "--background", "#fff"],
            "/v1/images/matte",
            {"background_color": "#fff"},
            "b.webp",
        ),
    ],
)
def test_the_command_line(
    words: list[str],
    path: str,
    fields: dict[str, Any],
    output: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    orders: list[PictureOrder] = []
    monkeypatch.setattr(pictures, "picture_command", lambda _, order: orders.append(order) or 0)
    assert CliRunner().invoke(app, words).exit_code == 0
    assert (orders[0].path, orders[0].fields, str(orders[0].output)) == (path, fields, output)
