"""Fixtures of the server's tests."""

import inspect
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import structlog
from fastapi import APIRouter, FastAPI
from openai import AsyncOpenAI
from starlette.routing import BaseRoute

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


class _SharedRoutes(FastAPI):
    """An app that uses the routes of the first one, with the validators that these have made, and
    its documentation."""

    made: ClassVar[dict[int, BaseRoute]] = {}
    """By the id of the router that was included. A route keeps its router alive."""
    documents: ClassVar[dict[tuple[str, ...], dict[str, Any]]] = {}
    """By the paths of an app's own routes, which a test may add."""

    def include_router(self, router: APIRouter, **options: Any) -> None:
        if id(router) in self.made:
            self.routes.append(self.made[id(router)])
        else:
            super().include_router(router, **options)
            self.made[id(router)] = self.routes[-1]

    def openapi(self) -> dict[str, Any]:
        own = tuple(getattr(route, "path", "") for route in self.routes)
        if own not in self.documents:
            self.documents[own] = super().openapi()
        return self.documents[own]


class _SharedTemplates(TemplateProcess):
    """A template that takes over the process of a closed one. Its own goes to the next."""

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
def shared_between_apps(
    picture_processes: PictureProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Share what apps are slow to make: the picture processes, which take half a second, the
    validators of their routes, which take a sixth of a second, and the processes of templates,
    which take a tenth of a second."""
    monkeypatch.setattr(app, "PictureProcesses", lambda max_pixels: picture_processes)
    monkeypatch.setattr(app, "FastAPI", _SharedRoutes)
    monkeypatch.setattr(texts, "TemplateProcess", _SharedTemplates)


@pytest.fixture
def unkept_templates(shared_between_apps: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "TemplateProcess", TemplateProcess)


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
