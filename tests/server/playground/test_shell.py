"""The page at `/`: what all of its views share."""

from typing import Any

import pytest
from playwright.async_api import expect

from tests.helpers.server.text_server import TextServer

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_page_opens_and_lists_its_views(server: TextServer, start_visit: Any) -> None:
    page = (await start_visit(server, "")).page
    views = page.get_by_role("navigation", name="Views").get_by_role("link")
    await expect(views).to_have_text(["Chat", "Models"])
    await expect(views.first).to_have_attribute("aria-current", "page")
    await views.nth(1).click()
    await expect(page.get_by_role("heading", name="Models", exact=True)).to_be_visible()
    await expect(page.get_by_text("org/tiny")).to_be_visible()
