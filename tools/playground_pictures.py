"""The pictures of docs/playground.md, taken from a running server.

python -m tools.playground_pictures http://127.0.0.1:8000
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

FOLDER = Path(__file__).parents[1] / "docs" / "img"
SIZE: ViewportSize = {"width": 1200, "height": 760}
QUESTION = "Explain how rainbows form, in three sentences."
PROMPTS = (
    "a yellow triangle above a purple circle on a white background",
    "a green star right of a yellow square on a black background",
    "a large red circle left of a small blue star on a white background",
)
STORY = "Tell a long story about a lighthouse."
ANSWER_TIMEOUT_MS = 120_000


def take_pictures(url: str) -> None:
    with sync_playwright() as playwright:
        program = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_context(viewport=SIZE, reduced_motion="reduce").new_page()
        _open(page, url, "chat")
        _take_chat(page)
        _open(page, url, "images")
        _take_images(page)
        _open(page, url, "chat")
        _take_models(page, url)
        browser.close()


def _take_chat(page: Page) -> None:
    page.get_by_label("Settings", exact=True).click()
    page.get_by_label("Show probabilities").check()
    page.get_by_label("Seed").fill("1")
    page.get_by_label("Close the settings").click()
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    page.get_by_label("Copy the answer").wait_for(timeout=ANSWER_TIMEOUT_MS)
    page.wait_for_timeout(500)  # the answer is drawn for the last time after its end
    # A token that was not the only likely one.
    page.locator(".token.shade-1, .token.shade-2").first.click()
    _keep(page, "chat")


def _take_images(page: Page) -> None:
    page.get_by_label("Seed", exact=True).fill("7")
    for number, prompt in enumerate(PROMPTS, 1):
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.keyboard.press("Enter")
        kept = page.locator(".picture-history li")
        expect(kept).to_have_count(number, timeout=ANSWER_TIMEOUT_MS)
    page.get_by_role("button", name="Download").hover()
    _keep(page, "images")
    page.get_by_label("Prompt", exact=True).fill(PROMPTS[-1].replace("red circle", "green square"))
    page.get_by_role("button", name="Mask", exact=True).click()
    expect(page.get_by_role("application", name="Mask")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    page.keyboard.down(" ")
    for key in ("ArrowLeft", "ArrowLeft", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    page.keyboard.up(" ")
    _keep(page, "mask")


def _take_models(page: Page, url: str) -> None:
    """The models while one writes and one draws."""
    page.get_by_label("Message", exact=True).fill(STORY)
    page.keyboard.press("Enter")
    painter, models = page.context.new_page(), page.context.new_page()
    _open(painter, url, "images")
    painter.get_by_label("Pictures").fill("10")
    painter.get_by_label("Prompt", exact=True).fill(PROMPTS[0])
    painter.keyboard.press("Enter")
    _open(models, url, "models")
    expect(models.locator(".requests tbody tr")).to_have_count(2)
    models.wait_for_timeout(5000)  # speeds are told from the second reading on
    _keep(models, "models")


def _open(page: Page, url: str, view: str) -> None:
    page.goto(f"{url.rstrip('/')}/#/{view}")
    page.locator("main > .kept:not([hidden])").wait_for()


def _keep(page: Page, name: str) -> None:
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.save(FOLDER / f"playground_{name}.webp", quality=82, method=6)


if __name__ == "__main__":
    take_pictures(sys.argv[1])
