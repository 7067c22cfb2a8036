"""Models whose chat templates loop, grow or crash: their own chats fail, nothing else does."""

import asyncio
import os
import re
import signal
import statistics
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.server.fake_server import error_of, until
from tests.helpers.server.text_server import MODEL, TextServer, text_info, write_tokenizer

pytestmark = pytest.mark.usefixtures("unkept_templates")
BAD = "org/hostile"
_LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
_TEMPLATE = (
    "{% if messages[0].content == 'loop' %}" + _LOOP + "{% endif %}"
    "{% if messages[0].content == 'grow' %}{{ 'a'.ljust(2000000000) }}{% endif %}"
    "{{ messages[0].content }}"
)


@pytest.fixture(autouse=True)
def shared_template_processes() -> None:
    """Have each app start and end processes of its own."""


def two_models(folder: Path, good: Path) -> TextServer:
    write_tokenizer(folder, chat_template=_TEMPLATE)
    return TextServer(good, text_info(good), text_info(folder, BAD))


async def ask(server: TextServer, model: str, content: str) -> tuple[int, str]:
    messages = [{"role": "user", "content": content}]
    response = await server.chat(model=model, messages=messages, max_tokens=2)
    return response.status_code, response.text


async def test_a_template_without_end_is_a_400_and_holds_up_nobody(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    server = two_models(tmp_path, tokenizer_folder)
    for model in (MODEL, BAD):
        assert (await ask(server, model, "hi"))[0] == 200
    bad = asyncio.create_task(ask(server, BAD, "loop"))
    delays_s = []
    while not bad.done():
        start_s = time.monotonic()
        assert (await ask(server, MODEL, "hi"))[0] == 200
        delays_s.append(time.monotonic() - start_s)
    status, text = await bad
    assert status == 400
    # Of processor time; on a busy machine the clock may be first.
    assert re.search("chat template took more than .* and was stopped", text)
    # The loop of this process was free all the time: it used to stand still for good.
    assert len(delays_s) > 10
    assert statistics.median(delays_s) < 0.5
    assert (await ask(server, BAD, "hi"))[0] == 200


async def test_a_template_that_takes_gigabytes_is_a_400(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    server = two_models(tmp_path, tokenizer_folder)
    before = psutil.Process().memory_info().rss
    status, text = await ask(server, BAD, "grow")
    assert (status, "needs too much memory" in text) == (400, True)
    assert psutil.Process().memory_info().rss - before < 100 << 20
    assert (await ask(server, BAD, "hi"))[0] == 200


async def test_a_crash_is_a_500_that_names_the_template(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    others = templates()
    server = two_models(tmp_path, tokenizer_folder)
    assert (await ask(server, BAD, "hi"))[0] == 200
    [pid] = templates() - others
    template = psutil.Process(pid)
    idle_s = template.cpu_times().user
    bad = asyncio.create_task(ask(server, BAD, "loop"))
    await until(lambda: template.cpu_times().user > idle_s)
    os.kill(pid, signal.SIGKILL)
    status, text = await bad
    assert (status, "process of the model's chat template ended" in text) == (500, True)
    assert (await ask(server, BAD, "hi"))[0] == 200


async def test_messages_for_counting_go_the_same_way(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    server = two_models(tmp_path, tokenizer_folder)
    messages = [{"role": "user", "content": "grow"}]
    error = error_of(await server.post("/tokenize", model=BAD, messages=messages))
    assert "needs too much memory" in error["message"]


@pytest.mark.parametrize("template", ["{% for %}", "{{ " + "+".join(["1"] * 300_000) + " }}"])
async def test_a_template_that_cannot_be_compiled(tmp_path: Path, template: str) -> None:
    others = templates()
    server = TextServer(write_tokenizer(tmp_path, chat_template=template))
    response = await server.chat()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "corrupt_file"
    assert "chat template" in response.json()["error"]["message"]
    assert not templates() - others


def templates() -> set[int]:
    """Ids of all processes of chat templates; a test that ran before may have left some."""
    return {child.pid for child in psutil.Process().children() if is_template(child)}


def is_template(process: psutil.Process) -> bool:
    try:
        return "engine.text.template_child" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
