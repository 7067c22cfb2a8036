"""The page at `/`: what all of its views share."""

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from server.routes.playground import FILES
from tests.helpers.draws import some
from tests.helpers.server.browser import Visit
from tests.helpers.server.fake_server import client_of
from tests.helpers.server.text_server import MODEL, TextServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = "zebra-key"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
MOST_BYTES = 400_000
WAYS_TO_LOOK = some([[("light", 360), ("dark", 1280)], [("light", 1280), ("dark", 360)]], 1)
"""Each scheme and each width once: colours do not depend on the width."""


async def test_the_page_opens_and_lists_its_views(server: TextServer, start_visit: Any) -> None:
    page = (await start_visit(server, "")).page
    views = page.get_by_role("navigation", name="Views").get_by_role("link")
    await expect(views.first).to_have_attribute("aria-current", "page")
    await page.get_by_role("link", name="Models").click()
    await expect(page.get_by_role("heading", name="Models", exact=True)).to_be_visible()
    await expect(page.locator(".model").first).to_contain_text(MODEL)


async def test_the_policy_lets_nothing_in_from_elsewhere(
    server: TextServer, start_visit: Any
) -> None:
    page = await server.client.get("/", headers=BROWSER)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert not re.search(r"https?:|\*|unsafe", policy)
    visit: Visit = await start_visit(server)
    blocked = """new Promise((done) => {
        addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
        const script = document.createElement("img");
        script.src = "https://example.com/a.png";
    })"""
    assert await visit.page.evaluate(blocked) == "img-src"
    assert "example.com" in visit.problems.pop()


async def test_all_files_are_sent_packed_and_are_small(server: TextServer) -> None:
    total = 0
    for name in FILES.names:
        answer = await server.client.get(f"/playground/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["x-content-type-options"] == "nosniff"
        total += answer.num_bytes_downloaded
        again = {"If-None-Match": answer.headers["etag"]}
        known = await server.client.get(f"/playground/{name}", headers=again)
        assert (known.status_code, known.content) == (304, b"")
        plain = {"Accept-Encoding": "identity"}
        unpacked = await server.client.get(f"/playground/{name}", headers=plain)
        assert unpacked.content == answer.content
    assert total < MOST_BYTES
    for path in ("../app.py", "__init__.py", "vendor", "vendor/preact.js.gz", ""):
        assert (await server.client.get(f"/playground/{path}")).status_code == 404, path


async def test_the_playground_can_be_off(tokenizer_folder: Path) -> None:
    server = TextServer(tokenizer_folder, playground=False)
    answer = await server.client.get("/", headers=BROWSER)
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")
    assert (await server.client.get("/playground/main.js")).status_code == 404
    assert "/docs" in (await server.client.get("/")).text


async def test_behind_a_prefix(tokenizer_folder: Path, start_visit: Any) -> None:
    server = TextServer(tokenizer_folder, root_path="/llm")
    server.say("prefixed")
    visit: Visit = await start_visit(server, "chat", "/llm")
    await visit.page.get_by_label("Message", exact=True).fill("Hello")
    await visit.page.keyboard.press("Enter")
    await expect(visit.page.locator(".of-model .markdown")).to_have_text("prefixed")


async def test_a_key_is_asked_for_once_and_kept_in_the_tab(
    tokenizer_folder: Path, start_visit: Any
) -> None:
    server = TextServer(tokenizer_folder, api_keys=(KEY,))
    server.client = client_of(server.app)
    page = (await start_visit(server)).page
    dialog = page.get_by_role("dialog", name="API key")
    await dialog.get_by_label("Key", exact=True).fill("wrong")
    await page.keyboard.press("Enter")
    await expect(dialog).to_contain_text("not valid")
    await dialog.get_by_label("Key", exact=True).fill(KEY)
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Model", exact=True)).to_have_value(MODEL)
    await page.reload()
    await expect(page.get_by_label("Model", exact=True)).to_have_value(MODEL)
    await expect(dialog).to_have_count(0)
    assert KEY not in str(await page.evaluate("JSON.stringify(localStorage)"))


async def test_a_lost_connection_is_said_and_comes_back(
    server: TextServer, start_visit: Any
) -> None:
    page = (await start_visit(server)).page
    await page.context.set_offline(True)
    await page.get_by_label("Message", exact=True).fill("Hello")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("The connection to the server was lost")
    await page.context.set_offline(False)
    server.say("back again")
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator(".of-model .markdown")).to_have_text("back again")


async def test_a_slow_network_only_takes_longer(server: TextServer, start_visit: Any) -> None:
    visit: Visit = await start_visit(server)
    page = visit.page
    cdp = await page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 200, "downloadThroughput": 60_000}
    await cdp.send("Network.emulateNetworkConditions", slow | {"uploadThroughput": 20_000})
    await cdp.send("Network.setCacheDisabled", {"cacheDisabled": True})
    await page.goto(f"{visit.url}/?#/chat", wait_until="commit")
    await expect(page.get_by_text("The page is being loaded")).to_be_visible()
    server.say("late, but **complete**")
    await page.get_by_label("Message", exact=True).fill("Hello")
    await expect(page.get_by_label("Model", exact=True)).to_have_value(MODEL)
    await page.keyboard.press("Enter")
    await expect(page.locator(".of-model .markdown")).to_have_text("late, but complete")
    await expect(page.get_by_text("The page is being loaded")).to_have_count(0)


@pytest.mark.parametrize(("scheme", "width"), [one for pair in WAYS_TO_LOOK for one in pair])
async def test_accessibility(server: TextServer, start_visit: Any, scheme: str, width: int) -> None:
    """axe-core finds no fault in any view, and nothing is wider than the screen."""
    server.say(
        "# Head\n\nA [link](https://a.example/) and $x^2$.\n\n|a|\n|-|\n|1|\n\n```py\nx = 1\n```"
    )
    size = {"width": width, "height": 800}
    visit: Visit = await start_visit(server, viewport=size, color_scheme=scheme)
    page = visit.page
    assert await visit.faults() == []
    await page.get_by_label("Settings", exact=True).click()
    await page.get_by_label("Show probabilities").check()
    assert await visit.faults() == []
    await page.get_by_label("Close the settings").click()
    await page.get_by_label("Message", exact=True).fill("Hello")
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Copy the answer")).to_be_visible()
    assert await visit.faults() == []
    await page.get_by_label("More", exact=True).click()
    assert await visit.faults() == []
    await page.get_by_role("menuitem", name="Show as text").click()
    await expect(page.locator("math")).to_be_visible()
    assert await visit.faults() == []
    await page.goto(f"{visit.url}/#/models")
    await expect(page.locator(".strip")).to_be_visible()
    assert await visit.faults() == []
    if width < 760:
        await page.get_by_label("Menu", exact=True).click()
        assert await visit.faults() == []
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await page.evaluate(overflow) == 0


async def test_the_theme_can_be_chosen(server: TextServer, start_visit: Any) -> None:
    page = (await start_visit(server, color_scheme="light")).page
    background = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(background)
    await page.get_by_label(re.compile("Theme: auto")).click()
    assert await page.evaluate(background) == light
    await page.get_by_label(re.compile("Theme: light")).click()
    dark = await page.evaluate(background)
    assert dark != light
    await page.reload()
    await expect(page.get_by_label(re.compile("Theme: dark"))).to_be_visible()
    assert await page.evaluate(background) == dark


async def test_the_keyboard_alone_is_enough(server: TextServer, start_visit: Any) -> None:
    server.say("typed")
    page = (await start_visit(server)).page
    await page.keyboard.press("Tab")

    async def tab_to(name: str) -> None:
        for _ in range(40):
            focused = (
                "document.activeElement.ariaLabel ?? document.activeElement.textContent.trim()"
            )
            if await page.evaluate(focused) == name:
                return
            await page.keyboard.press("Tab")
        pytest.fail(f"{name} cannot be reached")

    await tab_to("Settings")
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("System prompt")).to_be_visible()
    await page.get_by_label("System prompt").focus()
    await page.keyboard.press("Escape")
    await expect(page.get_by_label("System prompt")).to_have_count(0)
    await page.keyboard.press("Tab")
    await tab_to("Message")
    await page.keyboard.type("Hello")
    await page.keyboard.press("Enter")
    await expect(page.locator(".of-model .markdown")).to_have_text("typed")
    await tab_to("New chat")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("What would you like to know?")).to_be_visible()
    await tab_to("Models")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Models", exact=True)).to_be_visible()
