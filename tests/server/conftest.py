"""Fixtures of the server's tests."""

from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import structlog

from server import app
from server.images.picture_processes import PictureProcesses
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


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
async def closed_servers() -> AsyncIterator[None]:
    """Close the servers that the test makes."""
    FakeServer.made.clear()
    yield
    while FakeServer.made:
        await FakeServer.made.pop().aclose()


@pytest.fixture
async def server(tokenizer_folder: Path) -> TextServer:
    """A server of one model, `org/tiny`."""
    return TextServer(tokenizer_folder)
