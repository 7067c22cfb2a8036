"""The playground against a server with real models."""

import asyncio
import io
import re

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
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


async def test_a_painted_mask_keeps_all_other_pixels_and_a_file_draws_itself_again(server, browser):
    async with visit(browser, server.url, viewport={"width": 1280, "height": 800}) as one:
        await one.open("images")
        page = one.page
        kept = page.locator(".picture-history li")
        await page.get_by_text("More settings").click()
        await page.get_by_role("spinbutton", name="Steps", exact=True).fill("3")
        await page.get_by_label("Prompt", exact=True).fill("a red circle on a white background")
        await page.keyboard.press("Enter")
        await expect(kept).to_have_count(1, timeout=3 * TIMEOUT_MS)
        drawn = await _downloaded(page)
        await page.get_by_role("button", name="Mask", exact=True).press("Enter")
        await expect(page.get_by_role("application", name="Mask")).to_be_focused()
        await page.keyboard.press(" ")
        await page.keyboard.press("Control+Enter")
        await expect(kept).to_have_count(2, timeout=3 * TIMEOUT_MS)
        before, after = _levels(drawn), _levels(await _downloaded(page))
        changed = np.nonzero((before != after).any(2))
        middle, reach = len(before) / 2, len(before) / 8 + 1
        assert len(changed[0])
        assert all(abs(where + 0.5 - middle).max() <= reach for where in changed)
        await page.get_by_role("button", name="Remove the input").click()
        await page.locator("input[type=file]").first.set_input_files(
            {"name": "a.png", "mimeType": "image/png", "buffer": drawn}
        )
        await expect(page.get_by_text("From its file")).to_be_visible(timeout=3 * TIMEOUT_MS)
        await page.get_by_role("button", name="Draw", exact=True).click()
        await expect(kept).to_have_count(3, timeout=3 * TIMEOUT_MS)
        assert await _downloaded(page) == drawn


async def test_an_answer_from_a_cold_start_and_a_restart_in_the_middle_of_one(
    start_server, browser
):
    models = ("--model", "smollm2-135m-instruct")
    server = start_server(*models, wait=False)
    await asyncio.to_thread(server.wait_for, "/health")
    async with visit(browser, server.url) as one:
        await one.open("chat")
        page = one.page
        message = page.get_by_label("Message", exact=True)
        text = page.locator(".of-model .markdown")
        await expect(page.get_by_label("Model", exact=True)).to_have_value(models[1])
        await page.get_by_label("Settings", exact=True).click()
        await page.get_by_label("Most tokens").fill("4")
        await message.fill("Is it cold?")
        await message.press("Enter")
        await expect(page.locator(".stats")).to_contain_text("first after", timeout=6 * TIMEOUT_MS)
        await page.get_by_label("Most tokens").fill("")
        await page.get_by_label("Other fields").fill('{"ignore_eos": true}')
        await message.fill("Tell me a long story.")
        await message.press("Enter")
        await expect(text.nth(1)).to_have_text(re.compile(r"\w+ \w+ \w+"))
        server.process.kill()
        await expect(page.get_by_role("alert")).to_contain_text("connection to the server was lost")
        kept = (await text.nth(1).inner_text())[:20]
        await page.get_by_label("Other fields").fill("")
        await page.get_by_label("Most tokens").fill("4")
        again = start_server(*models, wait=False, port=server.port)
        await asyncio.to_thread(again.wait_for, "/health")
        await page.get_by_role("button", name="Go on").click()
        await expect(page.locator(".versions")).to_have_text("2 / 2", timeout=6 * TIMEOUT_MS)
        await expect(page.get_by_role("alert")).to_have_count(0)
        assert (await text.nth(1).inner_text()).startswith(kept)


async def _downloaded(page):
    async with page.expect_download() as coming:
        await page.get_by_role("button", name="Download").click()
    return await asyncio.to_thread((await (await coming.value).path()).read_bytes)


def _levels(file):
    return np.array(Image.open(io.BytesIO(file)).convert("RGB"))
