"""Fixtures of the playground's tests: one browser for all, and a server for each."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest_asyncio

from tests.helpers.server.browser import Visit, launched, visit
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import FakeServer
from tests.helpers.server.text_server import TextServer, text_info


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Any]:
    async with launched() as one:
        yield one


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def closed_servers() -> AsyncIterator[None]:
    """Close the servers of a test in the loop that it shares with the browser."""
    FakeServer.made.clear()
    yield
    while FakeServer.made:
        await FakeServer.made.pop().aclose()


@pytest_asyncio.fixture(loop_scope="session")
async def server(tokenizer_folder: Path) -> TextServer:
    """A server of a text model, `org/tiny`, and an image model, `shapes`."""
    text = text_info(tokenizer_folder, max_model_len=100_000)
    server = TextServer(tokenizer_folder, text, image_info("shapes"))
    server.engine.tokens_per_event = 16
    return server


@pytest_asyncio.fixture(loop_scope="session")
async def start_visit(browser: Any) -> AsyncIterator[Any]:
    """`await start_visit(server, view="", prefix="", **options)` serves the server on a port and
    opens a view of its page; the options are those of Playwright's `new_context`."""
    async with AsyncExitStack() as stack:

        async def start(
            server: FakeServer, view: str = "chat", prefix: str = "", **options: Any
        ) -> Visit:
            url = await stack.enter_async_context(server.listening())
            one = await stack.enter_async_context(visit(browser, url + prefix, **options))
            await one.open(view)
            return one

        yield start
