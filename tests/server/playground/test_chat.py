"""The chat of the playground, as a reader sees it."""

import asyncio
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Locator, Page, expect

from engine.contract.status import Phase
from tests.helpers.server.browser import Visit
from tests.helpers.server.fake_embeddings import embedding_info
from tests.helpers.server.fake_failure import Failure
from tests.helpers.server.fake_server import answer_of, until
from tests.helpers.server.picture_server import noise, picture_server
from tests.helpers.server.text_server import MODEL, TextServer, text_info, write_tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="session")

SLOW_S = 0.3
"""The time between events of an answer that a test wants to stop."""


async def ask(page: Page, text: str) -> None:
    await page.get_by_label("Message", exact=True).fill(text)
    await page.keyboard.press("Enter")


async def answered(page: Page) -> None:
    await expect(page.get_by_label("Stop", exact=True)).to_have_count(0)
    await expect(page.get_by_label("Copy the answer").last).to_be_visible()


async def new_chat(page: Page) -> None:
    await page.get_by_role("link", name="New chat").click()
    await expect(page.get_by_text("What would you like to know?")).to_be_visible()


def answers(page: Page) -> Locator:
    return page.locator(".of-model .markdown")


async def test_an_answer_streams_with_its_numbers(server: TextServer, start_visit: Any) -> None:
    server.say("A **bold** fox.\n\n- one\n- two")
    server.engine.num_cached_tokens = 3
    # A busy browser reads several events at once: many events, so that not all are read together.
    server.engine.tokens_per_event = 1
    server.engine.delay_s = 0.05
    page = (await start_visit(server)).page
    await ask(page, "Tell me")
    await answered(page)
    await expect(answers(page)).to_have_text("A bold fox. one two")
    await expect(answers(page).locator("strong")).to_have_text("bold")
    await expect(answers(page).locator("li")).to_have_count(2)
    stats = page.locator(".stats")
    for part in ("tokens/s", "first after", "3 cached"):
        await expect(stats).to_contain_text(part)


async def test_stop_keeps_the_text_and_go_on_continues_it(
    server: TextServer, start_visit: Any
) -> None:
    server.say("word " * 200)
    server.engine.delay_s = SLOW_S
    page = (await start_visit(server)).page
    await ask(page, "Count")
    await expect(answers(page)).to_contain_text("word word")
    await page.get_by_label("Stop", exact=True).click()
    await answered(page)
    kept = await answers(page).inner_text()
    assert kept.startswith("word word")
    await expect(page.locator(".stats")).to_contain_text("stopped")
    server.engine.delay_s = 0
    server.say("the end")
    await page.get_by_role("button", name="Go on").click()
    await answered(page)
    await expect(answers(page)).to_have_text(re.compile(f"{kept} ?the end"))
    assert server.last_prompt.rstrip().endswith(kept)


async def test_regenerate_and_edit_make_branches(server: TextServer, start_visit: Any) -> None:
    page = (await start_visit(server)).page
    server.say("first")
    await ask(page, "Question")
    await answered(page)
    server.say("second")
    await page.get_by_label("Write another answer").click()
    await expect(answers(page)).to_have_text("second")
    await expect(page.locator(".of-model .versions")).to_have_text("2 / 2")
    await page.get_by_label("Previous version").click()
    await expect(answers(page)).to_have_text("first")
    server.say("third")
    await page.locator(".of-user").hover()
    await page.get_by_label("Edit and ask again").click()
    await page.get_by_label("Text of the message").fill("Another question")
    await page.get_by_role("button", name="Send", exact=True).first.click()
    await expect(answers(page)).to_have_text("third")
    assert "Another question" in server.last_prompt
    await page.locator(".of-user").get_by_label("Previous version").click()
    await expect(answers(page)).to_have_text("first")


async def test_a_reload_keeps_the_history_which_can_be_searched_renamed_and_deleted(
    server: TextServer, start_visit: Any
) -> None:
    page = (await start_visit(server)).page
    server.say("about badgers")
    await ask(page, "First topic")
    await answered(page)
    await new_chat(page)
    server.say("about foxes")
    await ask(page, "Second topic")
    await answered(page)
    await expect(page.locator(".entry")).to_have_count(2)
    await page.reload()
    await expect(answers(page)).to_have_text("about foxes")
    entries = page.locator(".entry > a")
    await expect(entries).to_have_text(["Second topic", "First topic"])
    await page.get_by_label("Search conversations").fill("badgers")
    await expect(entries).to_have_text(["First topic"])
    await page.get_by_label("Search conversations").fill("")
    await page.get_by_label("Actions for First topic").focus()
    await page.keyboard.press("Enter")
    await page.get_by_role("menuitem", name="Rename").click()
    await page.get_by_label("Title").fill("Renamed")
    await page.keyboard.press("Enter")
    await expect(entries).to_have_text(["Renamed", "Second topic"])
    await page.get_by_label("Actions for Second topic").focus()
    await page.keyboard.press("Enter")
    await page.get_by_role("menuitem", name="Delete").click()
    await page.get_by_role("button", name="Delete", exact=True).click()
    await expect(entries).to_have_text(["Renamed"])
    await expect(page.get_by_text("What would you like to know?")).to_be_visible()


async def test_what_was_exported_can_be_imported(
    server: TextServer, start_visit: Any, tmp_path: Path
) -> None:
    page = (await start_visit(server)).page
    server.say("an answer")
    await ask(page, "A question")
    await answered(page)
    await expect(page.locator(".entry")).to_have_count(1)
    await page.get_by_label("Export and import").click()
    async with page.expect_download() as waiting:
        await page.get_by_role("menuitem", name="Export all").click()
    file = tmp_path / "all.json"
    await (await waiting.value).save_as(file)
    [one] = json.loads(file.read_text())["conversations"]
    assert [message["content"] for message in one["messages"]] == ["A question", "an answer"]
    other = (await start_visit(server)).page
    await other.locator("input[type=file][accept='application/json']").first.set_input_files(file)
    await other.locator(".entry > a").click()
    await expect(answers(other)).to_have_text("an answer")


HOSTILE = """<script>window.hacked = 1</script>
<img src="https://evil.example/a.png" onerror="window.hacked = 2">
<iframe src="https://evil.example"></iframe><style>body { display: none }</style>
<form action="/x"><input name="key"></form>

[link](javascript:window.hacked=3) [out](https://example.com/)
[data](data:text/html,<script>window.hacked=4</script>)
![picture](https://evil.example/b.png) ![local](/v1/models) <svg onload="window.hacked=5"></svg>

$\\href{javascript:window.hacked=6}{x} \\class{sidebar}{y}$

```html" onmouseover="window.hacked=7
<script>window.hacked = 8</script>
```
"""


async def test_hostile_output_does_nothing(server: TextServer, start_visit: Any) -> None:
    table = "|a|b|\n|-|-|\n" + "|1|<b onclick=x>2</b>|\n" * 600
    server.say(f"{HOSTILE}\n{table}")
    page = (await start_visit(server)).page
    await ask(page, "Attack")
    await answered(page)
    text = answers(page)
    await expect(text).to_contain_text("<script>window.hacked = 1</script>")
    await expect(text.locator("table")).not_to_have_count(0)
    tags = (
        "script, img, iframe, style, form, input, svg, object, [onclick], [onerror], [style*=url]"
    )
    assert await text.locator(tags).count() == 0
    links = await text.locator("a[href]").evaluate_all("all => all.map((one) => one.href)")
    assert set(links) == {"https://example.com/", "https://evil.example/b.png"}
    rel = await text.locator("a[href]").first.get_attribute("rel")
    assert rel is not None and "noopener" in rel
    for link in await text.get_by_text("link", exact=True).all():
        await link.click(force=True)
    assert await page.evaluate("window.hacked") is None
    assert await text.locator(".block").count() < 40


async def test_an_error_is_shown_in_the_servers_words(
    tokenizer_folder: Path, start_visit: Any
) -> None:
    server = TextServer(tokenizer_folder)
    page = (await start_visit(server)).page
    await ask(page, "long " * 300)
    await expect(page.get_by_role("alert")).to_contain_text("maximum context length")
    server.engine.failure = Failure(after=2)
    await new_chat(page)
    await ask(page, "Hello")
    await expect(page.get_by_role("alert")).to_contain_text("raise kv_cache_memory_gib")
    server.engine.failure = None
    server.say("well again")
    await page.get_by_role("button", name="Try again").click()
    await expect(answers(page)).to_have_text("well again")


async def test_a_question_waits_for_a_model_that_is_being_loaded(
    server: TextServer, start_visit: Any
) -> None:
    server.say("ready now")
    server.engine.set_status(MODEL, Phase.LOADING)
    page = (await start_visit(server)).page
    await ask(page, "Are you there?")
    await expect(page.get_by_text("org/tiny is loading")).to_be_visible()
    server.engine.set_status(MODEL, Phase.READY)
    await expect(answers(page)).to_have_text("ready now")


async def test_what_is_sent_before_the_page_knows_a_model_is_asked_once_it_does(
    server: TextServer, start_visit: Any
) -> None:
    server.say("here I am")
    visit: Visit = await start_visit(server)
    page = visit.page
    may_answer = asyncio.Event()

    async def answer_late(route: Any) -> None:
        await may_answer.wait()
        await route.continue_()

    await page.route("**/v1/models", answer_late)
    await page.goto(f"{visit.url}/?again#/chat")
    await ask(page, "Anybody?")
    await expect(page.get_by_text("as soon as a model is available")).to_be_visible()
    may_answer.set()
    await expect(answers(page)).to_have_text("here I am")


async def test_another_token_is_picked_and_the_text_goes_on_from_it(
    server: TextServer, start_visit: Any
) -> None:
    server.say("the quick brown fox")
    page = (await start_visit(server)).page
    await page.get_by_label("Settings", exact=True).click()
    await page.get_by_label("Show probabilities").check()
    await ask(page, "Go")
    await answered(page)
    await expect(page.locator(".tokens")).to_contain_text("mean probability 61 %")
    tokens = page.locator(".token")
    num_tokens = len(server.encode("the quick brown fox"))
    await expect(tokens).to_have_count(num_tokens + 1)
    index = random.randrange(1, num_tokens)
    before = "".join([await tokens.nth(i).inner_text() for i in range(index)])
    await tokens.first.focus()
    for _ in range(index):
        await page.keyboard.press("ArrowRight")
    await page.keyboard.press("Enter")
    choices = page.get_by_role("dialog").locator("button:not(:disabled)")
    await expect(choices.first).to_be_focused()
    server.say(" jumps")
    await page.keyboard.press("Enter")
    await answered(page)
    await expect(page.locator(".of-model .versions")).to_have_text("2 / 2")
    await expect(page.locator(".token.is-picked")).to_have_attribute("data-index", str(index))
    text = await page.locator(".token-text").inner_text()
    assert text.startswith(before)
    assert text.endswith(" jumps■")
    # The page shows a sign where a token has no text, and before a line's end.
    begun = text.removesuffix(" jumps■").replace("∅", "").replace("↵", "")
    assert server.last_prompt.endswith(begun)


async def test_a_raw_completion_goes_on_with_the_text_as_it_is(
    server: TextServer, start_visit: Any
) -> None:
    page = (await start_visit(server)).page
    await page.get_by_label("Settings", exact=True).click()
    await page.get_by_label("Raw completion").check()
    await page.get_by_label("Show probabilities").check()
    await page.get_by_label("Close the settings").click()
    server.say(" time é, the fox")
    await ask(page, "Once upon a")
    await answered(page)
    assert server.last_prompt == "<|s|>Once upon a"
    text = page.locator(".token-text")
    await expect(text).to_have_text(re.compile("^ time ∅?é∅?, the fox■$"), use_inner_text=True)
    comma = page.locator(".token", has_text=",")
    await comma.click()
    server.say(" in a wood")
    await page.get_by_role("dialog").locator("button:not(:disabled)").first.click()
    await expect(text).to_have_text(re.compile("é.* in a wood■$"), use_inner_text=True)
    assert server.last_prompt.startswith("<|s|>Once upon a time é")
    server.say(" they lived")
    await ask(page, " where")
    await expect(page.locator(".token-text")).to_have_count(2)
    assert server.last_prompt.endswith(" in a wood where")


async def test_what_nothing_in_the_conversation_supports_is_named(
    tokenizer_folder: Path, start_visit: Any
) -> None:
    embedder = embedding_info(path=str(tokenizer_folder), max_model_len=256)
    server = TextServer(tokenizer_folder, text_info(tokenizer_folder), embedder)
    server.say("The brown fox jumps. Badgers dig deep tunnels.")
    page = (await start_visit(server)).page
    await page.get_by_label("Settings", exact=True).click()
    await page.get_by_label("System prompt").fill("The brown fox jumps.")
    await page.get_by_text("Compare answers with the conversation").click()
    await ask(page, "Say more.")
    await page.get_by_text("1 of 2 sentences may not rest on the conversation").click()
    await expect(page.locator(".grounds q")).to_have_text("Badgers dig deep tunnels.")
    await expect(page.locator(".grounds span")).to_have_text("Nothing before it says this.")
    await page.get_by_label("Close the settings").click()
    server.say("The brown fox jumps.")
    await page.get_by_label("Write another answer").click()
    await expect(page.locator(".grounds summary")).to_have_text(
        "The sentence is like one before it"
    )


async def test_settings_shape_the_request_and_presets_keep_them(
    server: TextServer, start_visit: Any
) -> None:
    visit: Visit = await start_visit(server)
    page = visit.page
    await page.get_by_label("Settings", exact=True).click()
    await page.get_by_label("System prompt").fill("Answer as a pirate.")
    await page.get_by_label("Temperature", exact=True).fill("0.25")
    await page.get_by_label("Seed").fill("7")
    await page.get_by_label("Presets").click()
    await page.get_by_role("menuitem", name="Save as a preset").click()
    await page.get_by_label("Name of the preset").fill("Pirate")
    await page.keyboard.press("Enter")
    server.say("arr")
    await ask(page, "Hello")
    await answered(page)
    assert "Answer as a pirate." in server.last_prompt
    sampling = server.last_request.sampling
    assert (sampling.temperature, sampling.seed) == (0.25, 7)
    await page.get_by_role("link", name="New chat").click()
    await expect(page.get_by_label("System prompt")).to_have_value("")
    await page.get_by_label("Presets").click()
    await page.get_by_role("menuitem", name="Pirate", exact=True).click()
    await expect(page.get_by_label("System prompt")).to_have_value("Answer as a pirate.")
    await page.get_by_label("JSON schema of the answer").fill('{"type": ')
    await expect(page.get_by_text("This is not valid JSON")).to_be_visible()


async def test_two_models_answer_side_by_side_and_the_reader_votes(
    server: TextServer, start_visit: Any
) -> None:
    page = (await start_visit(server)).page
    await page.get_by_label("Compare with a second model").click()
    server.say("same")
    await ask(page, "Which?")
    await expect(answers(page)).to_have_text(["same", "same"])
    await page.get_by_role("button", name="Right is better").click()
    await expect(page.get_by_text("You preferred org/tiny")).to_be_visible()
    await expect(page.locator(".pair-side").nth(1)).to_have_class("pair-side is-chosen")


async def test_a_long_stream_is_rendered_by_blocks(server: TextServer, start_visit: Any) -> None:
    server.say("start here\n\n" + "the quick brown fox jumps\n\n" * 60 + "```\n" + "fox\n" * 450)
    page = (await start_visit(server)).page
    await ask(page, "Long")
    first = answers(page).locator(".block").first
    await expect(first).to_have_text("start here")
    await first.evaluate("one => { one.mark = 1; }")
    await answered(page)
    await expect(answers(page).locator(".block")).to_have_count(62)
    assert await first.evaluate("one => one.mark") == 1  # it was not rendered again
    await expect(answers(page).locator(".code-part")).to_have_count(5)


async def test_reasoning_is_folded(tmp_path: Path, start_visit: Any) -> None:
    folder = write_tokenizer(tmp_path)
    server = TextServer(folder, text_info(folder), engine={"reasoning_parser": "deepseek_r1"})
    server.say("first I think</think>then I say")
    page = (await start_visit(server)).page
    await ask(page, "Think")
    await answered(page)
    await expect(page.locator(".of-model > .markdown")).to_have_text("then I say")
    thoughts = page.locator(".reasoning .markdown")
    await expect(thoughts).to_be_hidden()
    await page.get_by_text("Thoughts").click()
    await expect(thoughts).to_have_text("first I think")


async def test_a_call_is_shown_and_gets_its_result(tmp_path: Path, start_visit: Any) -> None:
    folder = write_tokenizer(tmp_path)
    server = TextServer(folder, text_info(folder, max_model_len=4096))
    server.say('{"name": "get_weather", "arguments": {"city": "Paris"}}')
    page = (await start_visit(server)).page
    await page.get_by_label("Settings", exact=True).click()
    await page.get_by_label("Tools").fill('[{"name": "get_weather"}]')
    await ask(page, "What is the weather in Paris?")
    await expect(page.locator(".call")).to_contain_text("Calls get_weather")
    await expect(page.locator(".call pre")).to_have_text('{ "city": "Paris" }')
    server.say("It rains.")
    await page.get_by_label("Result of get_weather").fill("rain all day")
    await page.keyboard.press("Enter")
    await expect(answers(page).last).to_have_text("It rains.")
    assert "rain all day" in server.last_prompt


async def test_pictures_are_attached_where_the_model_takes_them(
    server: TextServer, tmp_path: Path, start_visit: Any
) -> None:
    page = (await start_visit(server)).page
    await expect(page.get_by_label("Model", exact=True)).to_have_value(MODEL)
    await expect(page.get_by_label("Attach pictures")).to_have_count(0)
    sighted = picture_server(tmp_path)
    sighted.say("I see noise.")
    page = (await start_visit(sighted)).page
    await expect(page.get_by_label("Attach pictures")).to_be_visible()
    file = tmp_path / "noise.png"
    noise(30, 20).save(file)
    await page.locator(".composer input[type=file]").set_input_files(file)
    await expect(page.get_by_alt_text("Picture 1", exact=True)).to_be_visible()
    await ask(page, "What is this?")
    await expect(answers(page)).to_have_text("I see noise.")
    await expect(page.get_by_alt_text("Attached picture 1")).to_be_visible()
    assert "<pic>" in sighted.last_prompt


async def test_an_answer_can_be_had_as_a_command_and_as_a_program(
    server: TextServer, start_visit: Any
) -> None:
    server.say("yes")
    visit: Visit = await start_visit(server, permissions=["clipboard-read", "clipboard-write"])
    page = visit.page
    await ask(page, "It's a test")
    await answered(page)
    for name, parts in {
        "Copy as curl": [f"{visit.url}/v1/chat/completions", "It'\\''s a test"],
        "Copy as Python": ["client.chat.completions.create", 'model="org/tiny"'],
    }.items():
        await page.get_by_label("More", exact=True).click()
        await page.get_by_role("menuitem", name=name).click()
        copied = await page.evaluate("navigator.clipboard.readText()")
        for part in parts:
            assert part in copied
    compile(copied, "copied", "exec")


async def test_two_tabs_share_the_history(server: TextServer, start_visit: Any) -> None:
    page = (await start_visit(server)).page
    other = await page.context.new_page()
    await other.goto(page.url)
    server.say("from the first tab")
    await ask(page, "Shared")
    await answered(page)
    await other.locator(".entry > a").click()
    await expect(answers(other)).to_have_text("from the first tab")


async def test_the_operators_presets_are_offered_and_their_defaults_begin_chats(
    tokenizer_folder: Path, tmp_path: Path, start_visit: Any
) -> None:
    file = tmp_path / "presets.yaml"
    file.write_text(
        f"""House: {{default: true, models: ["{MODEL}"], system: Be brief., sampling: {{top_k: 7}}}}
Cities: {{schema: {{type: object}}}}
Elsewhere: {{models: [other], default: true, system: Be long.}}
"""
    )
    text = text_info(tokenizer_folder)
    server = TextServer(tokenizer_folder, text, playground_presets=file)
    server.say("short")
    visit = await start_visit(server)
    page: Page = visit.page
    await page.get_by_label("Settings", exact=True).click()
    system = page.get_by_label("System prompt")
    await expect(system).to_have_value("Be brief.")
    await ask(page, "Hello")
    await answered(page)
    assert "Be brief." in server.last_prompt
    assert server.last_request.sampling.top_k == 7
    await system.fill("Be somebody else.")
    await page.get_by_role("button", name="Reset", exact=True).click()
    await expect(system).to_have_value("Be brief.")
    await page.get_by_label("Presets").click()
    await expect(page.get_by_role("menuitem", name="Elsewhere")).to_have_count(0)
    await page.get_by_role("menuitem", name="Cities", exact=True).click()
    schema = page.get_by_label("JSON schema of the answer")
    await expect(schema).to_have_value(re.compile('"type": "object"'))
    await page.get_by_label("Presets").click()
    async with page.expect_download() as waiting:
        await page.get_by_role("menuitem", name="Export the presets").click()
    exported = tmp_path / "exported.json"
    await (await waiting.value).save_as(exported)
    assert set(json.loads(exported.read_text())) == {"House", "Cities"}
    # What a page exports, an operator can give to a server, and a reader can import.
    other = TextServer(tokenizer_folder, text, playground_presets=exported)
    told = answer_of(await other.client.get("/v1/playground"))
    assert set(told["presets"]) == {"House", "Cities"}
    plain = (await start_visit(TextServer(tokenizer_folder, text))).page
    await plain.get_by_label("Settings", exact=True).click()
    await plain.locator(".panel input[type=file]").set_input_files(exported)
    await plain.get_by_label("Presets").click()
    await plain.get_by_role("menuitem", name="House", exact=True).click()
    await expect(plain.get_by_label("System prompt")).to_have_value("Be brief.")
    wrong = {"name": "a.json", "mimeType": "application/json", "buffer": b'{"A": {"sytem": "x"}}'}
    await plain.locator(".panel input[type=file]").set_input_files([wrong])
    await expect(plain.get_by_role("dialog")).to_contain_text("unknown field: sytem")


async def test_presets_ask_for_the_key(tokenizer_folder: Path) -> None:
    server = TextServer(tokenizer_folder, api_keys=("zebra-key",))
    assert (await server.client.get("/v1/playground")).status_code == 401


async def test_the_server_keeps_conversations_for_other_browsers(
    tokenizer_folder: Path, tmp_path: Path, start_visit: Any
) -> None:
    text = text_info(tokenizer_folder)
    server = TextServer(tokenizer_folder, text, conversations_dir=tmp_path / "history")
    server.say("about badgers")
    page = (await start_visit(server)).page
    await ask(page, "First topic")
    await answered(page)
    await until(lambda: len(list(tmp_path.rglob("*.json"))) == 1)
    other = (await start_visit(server)).page
    await expect(other.get_by_text("Kept on the server, too")).to_be_visible()
    await other.locator(".entry > a").click()
    await expect(answers(other)).to_have_text("about badgers")
    server.say("about foxes")
    await ask(other, "Go on")
    await answered(other)
    changed = (tmp_path / "history").rglob("*.json")
    [file] = changed
    await until(lambda: "foxes" in file.read_text())
    await page.evaluate("dispatchEvent(new Event('focus'))")
    await expect(answers(page)).to_have_text(["about badgers", "about foxes"])
    await other.get_by_label("Actions for First topic").focus()
    await other.keyboard.press("Enter")
    await other.get_by_role("menuitem", name="Delete").click()
    await other.get_by_role("button", name="Delete", exact=True).click()
    await expect(other.locator(".entry")).to_have_count(0)
    await until(lambda: not file.exists())
    await page.reload()
    await expect(page.locator(".entry")).to_have_count(0)
