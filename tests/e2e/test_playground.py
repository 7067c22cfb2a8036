"""The playground against a server with real models."""

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.helpers.server.browser import TIMEOUT_MS, launched, visit

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.e2e, pytest.mark.slow]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    async with launched() as one:
        yield one


async def test_the_default_model_answers_and_shows_what_else_it_could_have_said(server, browser):
    async with visit(browser, server.url) as one:
        await one.open("chat")
        page = one.page
        await page.get_by_label("Model", exact=True).select_option("smollm2-135m-instruct")
        await page.get_by_label("Settings", exact=True).click()
        await page.get_by_label("Show probabilities").check()
        await page.get_by_label("Most tokens").fill("12")
        await page.get_by_label("Message", exact=True).fill("What is the capital of France?")
        await page.keyboard.press("Enter")
        await expect(page.get_by_label("Copy the answer")).to_be_visible(timeout=3 * TIMEOUT_MS)
        before = await page.locator(".token").all_inner_texts()
        assert 2 <= len(before) <= 12
        await page.locator(".token").nth(1).click()
        await page.get_by_role("dialog").locator("button:not(:disabled)").first.click()
        await expect(page.locator(".of-model .versions")).to_have_text("2 / 2")
        await expect(page.get_by_label("Copy the answer")).to_be_visible(timeout=3 * TIMEOUT_MS)
        after = await page.locator(".token").all_inner_texts()
        assert after[0] == before[0]
        assert after[1] != before[1]


async def test_the_models_are_shown_with_their_memory(server, browser):
    async with visit(browser, server.url) as one:
        await one.open("models")
        rows = one.page.locator(".model").filter(has_text="loaded")
        await expect(rows.filter(has_text="tandem-shapes")).to_contain_text("Images")
        await expect(one.page.locator(".memory li").filter(has_text="smollm2")).to_have_count(1)
