"""Fixtures of the server's tests."""

import inspect
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import structlog
from openai import AsyncOpenAI

from engine.processes.helper_process import RunningHelper
from engine.text.template_process import TemplateProcess
from server import app
from server.images.picture_processes import PictureProcesses
from server.text import texts
from tests.helpers.server.fake_server import FakeServer
from tests.helpers.server.text_server import TextServer, write_tokenizer


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    """Collect what the test logs, in place of output."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture(scope="session")
def picture_processes() -> Iterator[PictureProcesses]:
    processes = _SharedProcesses(1 << 24)
    yield processes
    PictureProcesses.close(processes)


class _SharedProcesses(PictureProcesses):
    def close(self) -> None:
        """Do nothing: the next app uses the processes, too."""


@pytest.fixture(autouse=True)
def shared_picture_processes(
    picture_processes: PictureProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Share the picture processes between all apps, as starting them takes half a second."""
    monkeypatch.setattr(app, "PictureProcesses", lambda max_pixels: picture_processes)


class _SharedTemplates(TemplateProcess):
    """Takes over the process of one that was closed, and gives its own on when it is closed."""

    idle: ClassVar[list[RunningHelper]] = []

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._process._running = self.idle.pop() if self.idle else None

    def close(self) -> None:
        running = self._process._running
        is_busy = self._pump is not None and not self._pump.done()
        if running is not None and running.is_alive and not is_busy:
            self.idle.append(running)
            self._process._running = None
        super().close()


@pytest.fixture(autouse=True)
def shared_template_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share the processes of chat templates, as starting one takes a tenth of a second."""
    monkeypatch.setattr(texts, "TemplateProcess", _SharedTemplates)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
async def closed_servers(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Close the servers that a coroutine makes; other tests ask theirs in another event loop."""
    is_coroutine = inspect.iscoroutinefunction(request.function)
    FakeServer.made.clear()
    yield
    while FakeServer.made and is_coroutine:
        await FakeServer.made.pop().aclose()


@pytest.fixture
async def server(tokenizer_folder: Path) -> TextServer:
    """A server of one model, `org/tiny`."""
    return TextServer(tokenizer_folder)


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's client, over a real port."""
    async with (
        server.listening() as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client
