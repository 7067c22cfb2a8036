"""What the operator sees while models load, and the first question."""

import asyncio
import json
import shlex
import socket
import subprocess

import pytest
import structlog

from engine.contract.model_spec import ModelSpec
from engine.contract.status import ModelStatus, Phase
from engine.errors import Failure
from server.http.served_operation import FirstQuestion
from server.process.announce import Announcer, _is_news, own_command, shell_line
from server.process.listen import Listener
from server.settings import Settings
from server.text.served import SERVED_TEXT
from tests.helpers.server.fake_engine import FakeEngine
from tests.helpers.server.fake_images import image_info


@pytest.fixture
def listener():
    with socket.socket() as unused:
        yield Listener(unused, "http://127.0.0.1:8000")


async def announce(engine, listener, *phases, **settings):
    """Run an announcer while the model goes through phases; gives log lines and what was told."""
    told, looks, statuses = [], asyncio.Event(), engine.statuses

    def looked():
        looks.set()
        return statuses()

    engine.statuses = looked
    announcer = Announcer(Settings(**settings), engine, listener, told.append)
    with structlog.testing.capture_logs() as lines:
        task = asyncio.create_task(announcer.run())
        for change in phases:
            looks.clear()
            await looks.wait()
            engine.set_status("fake", **change)
        async with asyncio.timeout(60):
            await task
    return lines, told


async def test_phases_and_progress_then_what_can_be_asked(listener):
    engine = FakeEngine(ready=False)
    lines, told = await announce(
        engine,
        listener,
        {"phase": Phase.DOWNLOADING, "progress": 0.01},
        {"phase": Phase.DOWNLOADING, "progress": 0.02},  # not worth a line
        {"phase": Phase.DOWNLOADING, "progress": 0.51, "detail": "50 of 98 MiB"},
        {"phase": Phase.LOADING},
        {"phase": Phase.READY},
    )
    seen = [(line["phase"], line.get("progress")) for line in lines if "phase" in line]
    assert seen == [
        ("starting", None),
        ("downloading", "1%"),
        ("downloading", "51%"),
        ("loading", None),
    ]
    assert lines[0]["url"] == "http://127.0.0.1:8000"
    assert lines[-1]["try_with"] == [f'{own_command()} chat "Write one sentence about the sea."']
    assert told == [], "a log is a log throughout"


async def test_an_image_model_gets_a_line_of_its_own(listener):
    lines, _ = await announce(FakeEngine(image_info("painter")), listener)
    [line] = lines[-1]["try_with"]
    assert len(line) < 120
    assert shlex.split(line)[-4:-2] == ["draw", "a large red circle left of a small blue star"]


@pytest.mark.parametrize(("playground", "page"), [(True, ""), (False, "/docs")])
async def test_a_terminal_is_told_the_lines_and_the_page(listener, playground, page):
    told = []
    settings = Settings(playground=playground)
    await Announcer(settings, FakeEngine(), listener, told.append, Screen()).run()
    [text] = told
    assert text.startswith("\nReady. Try:\n")
    assert text.count(" chat ") == 1
    assert text.endswith(f"\nOr open http://127.0.0.1:8000{page}\n")


async def test_a_terminal_is_told_to_set_the_key_that_its_lines_send(listener):
    told = []
    settings = Settings(api_keys=("zebra",))
    await Announcer(settings, FakeEngine(), listener, told.append, Screen()).run()
    [text] = told
    assert text.startswith("\nReady. Set API_KEY to a key and try:\n")
    assert '--api-key "$API_KEY"' in text and "zebra" not in text


async def test_a_failure_says_why_and_offers_nothing(listener):
    engine = FakeEngine(ready=False)
    failure = Failure("corrupt_file", "the file is cut off", hint="at /a/b")
    failed = {"phase": Phase.FAILED, "failure": failure}
    lines, told = await announce(engine, listener, failed)
    assert lines[-1]["log_level"] == "error"
    assert (lines[-1]["code"], lines[-1]["cause"]) == ("corrupt_file", "the file is cut off")
    assert lines[-1]["hint"] == "at /a/b"
    assert told == []


async def test_models_that_come_and_go_meanwhile_are_not_waited_for(listener):
    """Who loads one hears of it, and one that is unloaded will not settle."""
    engine = FakeEngine("fake", "leaves", ready=False)
    engine.may_change.clear()
    loading = engine.load(ModelSpec.create("new"))

    async def leave():
        await asyncio.sleep(0.15)
        engine.may_change.set()
        await engine.unload("leaves", 0)

    leaving = asyncio.create_task(leave())
    lines, _ = await announce(engine, listener, {"phase": Phase.READY})
    await leaving
    await loading
    assert {line.get("model") for line in lines} == {None, "fake", "leaves"}
    assert "stopped" not in [line.get("phase") for line in lines]
    assert lines[-1]["try_with"]


class Screen:
    """Notes what it is shown, in place of bars."""

    def __init__(self):
        self.shown = []
        self.has_begun = asyncio.Event()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.shown.append("end")

    def show(self, status):
        self.has_begun.set()
        if self.shown[-1:] != [(status.model, status.phase)]:
            self.shown.append((status.model, status.phase))


async def test_a_screen_is_shown_a_model_that_is_unloaded_and_nothing_has_failed(listener):
    """A server without models waits for one to be loaded; one whose models have failed ends."""
    engine = FakeEngine(ready=False)
    screen = Screen()
    announcer = Announcer(Settings(), engine, listener, pytest.fail, screen)
    task = asyncio.create_task(announcer.run())
    await screen.has_begun.wait()
    await engine.unload("fake", 0)
    async with asyncio.timeout(30):
        await task
    assert screen.shown[0] == ("fake", Phase.STARTING)
    assert screen.shown[-2:] == [("fake", Phase.STOPPED), "end"]
    assert not announcer.nothing_serves


@pytest.mark.parametrize(
    ("phases", "ends"),
    [
        ((Phase.FAILED, Phase.FAILED), True),
        ((Phase.FAILED, Phase.STOPPED), False),
        ((Phase.FAILED, Phase.READY), False),
    ],
)
async def test_nothing_serves_once_every_model_has_failed(listener, phases, ends):
    engine = FakeEngine("a", "b", ready=False)
    for name, phase in zip("ab", phases, strict=True):
        engine.set_status(name, phase=phase, failure=Failure("corrupt_file", "it is cut off"))
    announcer = Announcer(Settings(), engine, listener, lambda line: None)
    async with asyncio.timeout(30):
        await announcer.run()
    assert announcer.nothing_serves is ends


async def test_one_question_is_enough_for_models_of_a_kind(listener):
    lines, _ = await announce(FakeEngine("a", "b"), listener)
    assert len(lines[-1]["try_with"]) == 1


def test_what_is_worth_a_line_of_the_log():
    loading = ModelStatus(model="m", phase=Phase.LOADING, progress=0.11, detail="1 of 9")
    more = ModelStatus(model="m", phase=Phase.LOADING, progress=0.19, detail="2 of 9")
    tenth = ModelStatus(model="m", phase=Phase.LOADING, progress=0.2)
    assert not _is_news(loading, more, 4.9)
    assert _is_news(loading, more, 5.1)
    assert not _is_news(loading, loading, 60.0)
    assert _is_news(more, tenth, 0.0)
    assert _is_news(loading, ModelStatus(model="m", phase=Phase.WARMING_UP, progress=0.11), 0.0)


async def test_keys_are_asked_for_but_not_shown(listener):
    lines, _ = await announce(FakeEngine(), listener, api_keys=("zebra",))
    assert lines[-1]["try_with"][0].endswith(' --api-key "$API_KEY"')
    assert "zebra" not in repr(lines)


QUESTIONS = [
    FirstQuestion(path="/v1/embeddings", fields={"model": 'quo"te $(rm)', "input": "o'brien"}),
    FirstQuestion(words=("draw", 'it\'s a $HOME `here` "there" \\', "-o", "a b.png")),
    FirstQuestion(words=("chat", "What is this?"), path="/v1/chat", fields={"model": "org/name"}),
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_lines_survive_the_shell(listener, question):
    words = shlex.split(shell_line(listener, question, with_key=False))
    if question.words:
        own = shlex.split(own_command())
        assert words == [*own, *question.words]
    else:
        assert json.loads(words[words.index("-d") + 1]) == question.fields
    shell = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {shell_line(listener, question, with_key=False)}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout.split("\0")[:-1] == words


def test_another_address_is_said(listener):
    other = Listener(listener.socket, "http://127.0.0.1:8001")
    line = shell_line(other, SERVED_TEXT.first_question("m"), with_key=True)
    assert line.endswith(' --url http://127.0.0.1:8001 --api-key "$API_KEY"')


def test_unix_sockets_are_asked_with_curl(listener, tmp_path):
    unix = Listener(listener.socket, "http://localhost", tmp_path / "a b.sock")
    words = shlex.split(shell_line(unix, SERVED_TEXT.first_question("m"), with_key=False))
    assert words[:3] == ["curl", "--unix-socket", str(tmp_path / "a b.sock")]
    assert shell_line(unix, QUESTIONS[1], with_key=False) is None


async def test_and_the_log_says_where_they_are(listener, tmp_path):
    unix = Listener(listener.socket, "http://localhost", tmp_path / "a b.sock")
    lines, _ = await announce(FakeEngine(), unix)
    assert lines[0]["url"] == str(tmp_path / "a b.sock")
