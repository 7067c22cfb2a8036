"""`tandem chat` and `tandem top` in a pseudo-terminal, typed into as by a person."""

import json
import os
import re

import pytest

from tests.helpers.adapters.peft_adapters import write_adapter
from tests.helpers.models.tiny_wrappers import make_wrapper
from tests.helpers.pseudo_terminal import PseudoTerminal
from tests.helpers.server.picture_server import noise

pytestmark = pytest.mark.e2e
PROMPT = r"\n> $"
UP, CTRL_D = "\x1b[A", "\x04"
ASKED = re.escape("\x1b[c")


@pytest.fixture
def terminal(tmp_path):
    """`terminal(*arguments)` runs `tandem` with them in a folder and with a cache of its own."""
    opened = []

    def run(*arguments, **env):
        env = {"XDG_CACHE_HOME": str(tmp_path / "cache"), **env}
        opened.append(PseudoTerminal(["-m", "server", *arguments], folder=tmp_path, **env))
        return opened[-1]

    yield run
    for one in opened:
        one.close()


@pytest.fixture
def history(tmp_path):
    return tmp_path / "cache" / "tandem" / "chat_history"


def chat(terminal, server, *arguments, model="tiny", **env):
    options = ("--url", server.url, "--model", model, "--max-tokens", "8")
    opened = terminal("chat", *options, *arguments, **env)
    opened.expect(PROMPT)
    return opened


def say(chat, line):
    chat.type(line)
    return chat.expect(PROMPT)


def test_lines_come_back_in_the_next_conversation(terminal, server, history):
    first = chat(terminal, server)
    say(first, "hello there\n")
    say(first, "one \\\ntwo\n")
    say(first, '"""\nthree\n\nfour\n"""\n')
    assert "6 messages" in say(first, "/save chat.json\n")
    first.type(CTRL_D)
    assert first.wait() == 0
    assert history.stat().st_mode & 0o777 == 0o600
    history.chmod(0o644)
    second = chat(terminal, server)
    assert history.stat().st_mode & 0o777 == 0o600
    assert "6 messages" in say(second, "/load chat.json\n")
    assert "6 messages. /load" in say(second, f"{UP * 2}\n"), "the line that saved it"
    second.interrupt()
    assert second.wait() == 130
    lines = history.read_text().splitlines()
    assert lines[:3] == ["hello there", "one \\", "two"]
    assert lines[-2:] == ["/load chat.json", "/save chat.json"]


def test_no_lines_are_kept_if_nobody_wants_that(terminal, server, history):
    for arguments, env in (["--no-history"], {}), ([], {"TANDEM_CHAT_HISTORY": "false"}):
        opened = chat(terminal, server, *arguments, **env)
        say(opened, "a secret\n")
        opened.type("/exit\n")
        assert opened.wait() == 0
        assert not history.exists()


def test_an_interrupt_stops_an_answer_and_drops_a_message(terminal, server):
    opened = chat(terminal, server, model="smollm2-135m-instruct")
    for limit in ("max", "min"):  # the answer does not end before it is stopped
        say(opened, f"/set {limit}_tokens 4000\n")
    opened.type("Count from 1 to 1000.\n")
    opened.expect(r"1000\.\r\n.*\w")
    opened.interrupt()
    opened.expect("stopped")
    opened.expect(PROMPT)
    opened.type('"""\nhalf a thought\n')
    opened.expect(r"half a thought\r\n\. $")
    opened.interrupt()
    opened.expect("dropped")
    opened.expect(PROMPT)
    opened.type(CTRL_D)
    assert opened.wait() == 0


def test_a_drawn_picture_is_shown_where_the_terminal_can(terminal, server, tmp_path):
    opened = chat(terminal, server)
    opened.type("/draw a red circle\n")
    opened.expect(ASKED)
    opened.type("\x1b[?62;4c")
    shown = opened.expect(r"\x1bP0;1q.*\x1b\\.*picture-1\.png: 128x128.*" + PROMPT)
    assert '"1;1;128;128' in shown
    assert (tmp_path / "picture-1.png").read_bytes().startswith(b"\x89PNG")
    opened.type("/draw a blue star\n")  # it is asked once
    assert "\x1b[c" not in opened.expect(r"\x1bP0;1q.*picture-2\.png")
    mute = terminal("draw", "a dot", "--url", server.url, TERM="dumb")
    assert mute.wait() == 0
    assert "image.png: 128x128" in mute.output and "\x1b" not in mute.output


@pytest.fixture(scope="module")
def many(start_shared_server, tiny_llama, tmp_path_factory):
    """A model with an adapter, and one that takes pictures."""
    base, seer = tiny_llama(seed=3), tmp_path_factory.mktemp("seer")
    make_wrapper(seer, "gemma3")
    write_adapter(base, poet := tmp_path_factory.mktemp("adapters") / "poet", 1, r=4)
    lora = {"ref": str(base), "name": "base", "settings": {"lora": [f"poet={poet}"]}}
    return start_shared_server("--model", json.dumps(lora), "--model", f"seer={seer}")


def test_pictures_models_and_adapters(terminal, many, tmp_path):
    noise().save(tmp_path / "noise.png")
    opened = chat(terminal, many, model="base")
    assert "/model seer switches" in say(opened, "/image noise.png\n")
    assert "answers with poet" in say(opened, "/adapter poet\n")
    say(opened, "hello\n")
    opened.type("/model se\t")  # the tab key completes it
    opened.expect("/model seer")
    assert "seer answers from now on" in say(opened, "\n")
    assert "goes with your next" in say(opened, "/image noise.png\n")
    say(opened, "what is it?\n")
    assert "4 messages" in say(opened, "/save chat.json\n")
    assert "image_url" in (tmp_path / "chat.json").read_text()
    os.unlink(tmp_path / "noise.png")
    say(opened, "and now?\n")
    assert "6 messages" in say(opened, "/save chat.json\n")


def test_top_shows_a_server_until_somebody_leaves(terminal, server):
    url = ("--url", server.url)
    opened = terminal("top", *url)
    opened.expect(r"is ready: 0 running.*tiny.*tandem-shapes.*memory of cpu.*No requests")
    opened.expect(r"No requests")  # it is drawn again
    opened.type("x q")
    assert opened.wait() == 0
    assert opened.output.count("\x1b[?1049h") == opened.output.count("\x1b[?1049l") == 1
    opened = terminal("top", *url)
    opened.expect("No requests")
    opened.interrupt()
    assert opened.wait() == 0
    once = terminal("top", "--once", *url)
    assert once.wait() == 0
    assert once.output.count("No requests") == 1 and "\x1b[?1049h" not in once.output
