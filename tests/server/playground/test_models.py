"""The models view of the playground."""

from typing import Any

import pytest
from playwright.async_api import expect

from engine.contract.status import Phase
from engine.runtime.memory import DeviceMemory
from tests.helpers.server.text_server import MODEL, TextServer

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_states_and_memory_of_models_are_shown(
    server: TextServer, start_visit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {MODEL: 3_000_000_000, "shapes": 500_000_000}
    memory = [DeviceMemory("cpu", 7_000_000_000, held)]
    monkeypatch.setattr(server.engine, "memory", lambda: memory)
    server.engine.set_status("shapes", Phase.LOADING)
    page = (await start_visit(server, "models")).page
    rows = page.locator(".model")
    await expect(rows.filter(has_text=MODEL)).to_contain_text("loaded")
    await expect(rows.filter(has_text="shapes").first).to_contain_text("loading")
    await expect(page.get_by_text("cpu: 3.5 GB of 7.0 GB are reserved")).to_be_visible()
    server.engine.set_status("shapes", Phase.READY)
    await expect(rows.filter(has_text="shapes").first).to_contain_text("loaded")


async def test_models_are_unloaded_and_refusals_are_shown(
    server: TextServer, tokenizer_folder: Any, start_visit: Any
) -> None:
    page = (await start_visit(server, "models")).page
    row = page.locator(".model").filter(has_text=MODEL)
    await row.get_by_role("button", name="Unload").click()
    await expect(row.get_by_role("alert")).to_contain_text("--enable-runtime-loading")
    open_server = TextServer(tokenizer_folder, enable_runtime_loading=True)
    page = (await start_visit(open_server, "models")).page
    row = page.locator(".model").filter(has_text=MODEL)
    await row.get_by_role("button", name="Unload").click()
    await expect(row).to_have_count(0)
    assert open_server.engine.statuses() == []


async def test_models_sleep_wake_and_are_pinned(tokenizer_folder: Any, start_visit: Any) -> None:
    server = TextServer(tokenizer_folder, enable_runtime_loading=True)
    page = (await start_visit(server, "models")).page
    row = page.locator(".model").filter(has_text=MODEL)
    await row.get_by_role("button", name="Sleep").click()
    await expect(row).to_contain_text("sleeping")
    await row.get_by_role("button", name="Wake").click()
    await expect(row.locator(".state")).to_have_text("loaded")
    pin = row.get_by_role("button", name="Pin")
    await expect(pin).to_have_attribute("aria-pressed", "false")
    await pin.click()
    await expect(pin).to_have_attribute("aria-pressed", "true")
    await expect(row.get_by_role("button", name="Sleep")).to_have_count(0)
    assert server.engine.statuses()[0].pinned


async def test_a_request_in_work_is_listed_and_cancelled(
    server: TextServer, start_visit: Any
) -> None:
    server.say("word " * 500)
    server.engine.delay_s = 0.3
    page = (await start_visit(server)).page
    await page.get_by_label("Message", exact=True).fill("Write for long")
    await page.keyboard.press("Enter")
    await expect(page.locator(".of-model .markdown")).to_contain_text("word")
    await page.get_by_role("link", name="Models").click()
    await expect(page.locator(".requests tbody tr")).to_contain_text(MODEL)
    await page.get_by_role("button", name="Cancel the request").click()
    await expect(page.get_by_text("None at present.")).to_be_visible()
    assert len(server.engine.aborted) == 1
    await page.get_by_role("link", name="Chat", exact=True).click()
    await expect(page.get_by_role("alert")).to_contain_text("cancelled")
    await expect(page.locator(".of-model .markdown")).to_contain_text("word")
