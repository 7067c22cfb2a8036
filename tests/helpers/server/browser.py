"""A browser for the tests of pages: Chromium, driven by Playwright, and what every page must keep
to."""

import gzip
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).parents[2] / "data" / "axe.min.js.gz"
"""axe-core 4.14.1 (MPL-2.0): finds faults of accessibility."""
TIMEOUT_MS = 20_000
INSTALL = "apt-get install chromium  # or: python -m playwright install chromium"


@asynccontextmanager
async def launched() -> AsyncIterator[Any]:
    """A running browser; without one, the test is skipped."""
    api = pytest.importorskip("playwright.async_api", reason="needs playwright: make .venv/.dev")
    api.expect.set_options(timeout=TIMEOUT_MS)
    async with api.async_playwright() as playwright:
        program = _program(playwright)
        yield await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])


def _program(playwright: Any) -> str:
    """The system's Chromium, or Playwright's own."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    program = found or playwright.chromium.executable_path
    if not Path(program).exists():
        pytest.skip(f"needs a browser: {INSTALL}")
    return str(program)


class Visit:
    """A reader's visit to a page: one tab, which may load nothing from elsewhere and may report no
    error.

    Attributes:
        page: Playwright's page.
        url: where the page is.
        problems: what the tab has reported, and the requests that left the origin.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))

    def _note(self, message: Any) -> None:
        # The browser reports every answer above 399, which a test may be about.
        is_refusal = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not is_refusal:
            self.problems.append(f"{message.type}: {message.text}")

    async def guard(self) -> None:
        """Stop requests that leave the origin."""

        async def stop(route: Any) -> None:
            self.problems.append(f"left the origin: {route.request.url}")
            await route.abort()

        await self.page.route(re.compile(rf"^(?!{re.escape(self.url)})https?://"), stop)

    async def open(self, view: str = "") -> None:
        await self.page.goto(f"{self.url}/#/{view}")
        await self.page.locator("main > .kept:not([hidden])").wait_for()

    async def faults(self) -> list[str]:
        """What axe-core finds wrong with the page as it is now."""
        if not await self.page.evaluate("'axe' in window"):
            # Not as a script of the page: its policy allows none.
            await self.page.evaluate(gzip.decompress(AXE.read_bytes()).decode())
        found = await self.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        return [
            f"{one['id']}: {node['html']} {node['failureSummary']}"
            for one in found["violations"]
            for node in one["nodes"]
        ]


@asynccontextmanager
async def visit(browser: Any, url: str, **options: Any) -> AsyncIterator[Visit]:
    """Visit a page with a fresh profile. At its end the page may have reported nothing."""
    context = await browser.new_context(**options)
    context.set_default_timeout(TIMEOUT_MS)
    one = Visit(await context.new_page(), url)
    await one.guard()
    try:
        yield one
    finally:
        await context.close()
    assert one.problems == []
