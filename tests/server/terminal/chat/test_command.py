"""The conversation of `tandem chat`, and what it says when the server does not play along."""

import json

import httpx
import pytest

from engine.contract.built_in import BUILT_IN
from server.settings import ClientSettings
from server.terminal import client as terminal_client
from server.terminal import models as terminal_models
from server.terminal.chat import command as terminal_chat
from server.terminal.chat.command import chat_command
from server.terminal.chat.conversation import Conversation
from server.terminal.client import ServerProblem

SETTINGS = ClientSettings(url="http://server", api_key="k", chat_history=False)


def stream_of(*pieces, tail="data: [DONE]\n\n"):
    events = [{"choices": [{"delta": {"role": "assistant"}}]}]
    events += [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    events += [{"choices": []}]
    text = ": heartbeat\n\n" + "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return httpx.Response(200, text=text + tail)


class Server:
    """Answers chat requests from a list; remembers the bodies."""

    def __init__(self):
        self.answers = []
        self.bodies = []
        self.keys = set()
        self.client = httpx.Client(
            transport=httpx.MockTransport(self.handle), base_url="http://server"
        )

    def handle(self, request):
        self.keys.add(request.headers.get("authorization"))
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "first"}, {"id": "second"}]})
        if request.url.path == "/models":
            cards = [{"id": name, "loadable": name != "gone"} for name in ("first", "gone", "new")]
            return httpx.Response(200, json={"data": cards})
        if request.url.path == "/ready":
            state = {"model": "first", "phase": "loading", "progress": 0.5, "detail": "[x] half"}
            return httpx.Response(503, json={"models": [state]})
        self.bodies.append(json.loads(request.content))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def server(monkeypatch):
    server = Server()

    def open_client(settings):
        key = settings.api_key.get_secret_value()
        return httpx.Client(
            transport=httpx.MockTransport(server.handle),
            base_url=settings.url,
            headers={"Authorization": f"Bearer {key}"},
        )

    for module in (terminal_chat, terminal_models):
        monkeypatch.setattr(module, "open_client", open_client)
    with server.client:
        yield server


def command(question="Hi?", **options):
    options = {"model": None, "system": None, "sampling": {}} | options
    return chat_command(SETTINGS, question, **options)


def test_one_question(server, capsys):
    server.answers = [stream_of("Hel", "lo ", "wörld")]
    assert command(system="Be brief.", sampling={"temperature": 0.0}) == 0
    assert capsys.readouterr().out == "Hello wörld\n"
    assert server.bodies == [
        {
            "model": "first",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi?"},
            ],
            "stream": True,
            "temperature": 0.0,
            "repetition_detection": {"max_pattern_size": 48, "min_count": 8},
        }
    ]
    assert server.keys == {"Bearer k"}


def test_an_answer_that_was_ended_since_it_repeats_itself_says_so(server, capsys):
    end = {"choices": [{"delta": {}, "finish_reason": "repetition"}]}
    server.answers = [stream_of("la la la", tail=f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n")]
    assert command() == 0
    captured = capsys.readouterr()
    assert captured.out == "la la la\n"
    assert captured.err == "[The answer repeated itself and was stopped.]\n"


@pytest.mark.parametrize(
    ("pieces", "sampling", "note"),
    [
        (["a b"], {}, "[The answer was cut off: the conversation is as long"),
        (["a b"], {"max_tokens": 2}, ""),
        ([], {}, "[The model answered nothing."),
    ],
)
def test_answers_that_are_cut_off_or_empty_say_so(pieces, sampling, note, server, capsys):
    end = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    server.answers = [stream_of(*pieces, tail=f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n")]
    assert command(sampling=sampling) == 0
    error = capsys.readouterr().err
    assert error.startswith(note) and bool(error) == bool(note)


def test_a_problem_stands_on_a_line_of_its_own(server, capfd):
    error = {"error": {"message": "the worker ended"}}
    server.answers = [stream_of("Once upon", tail=f"data: {json.dumps(error)}\n\n")]
    assert command() == 1
    assert capfd.readouterr() == ("Once upon\n", "tandem: the worker ended\n")


def test_a_terminal_gets_lines_broken_between_words(server, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "20")
    server.answers = [stream_of("The quick bro", "wn fox jum", "ps over the", " lazy dog")]
    assert command() == 0
    assert capsys.readouterr().out == "The quick brown fox\njumps over the lazy\ndog\n"


def test_an_answer_cannot_control_the_terminal(server, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    server.answers = [stream_of("a\x1b]52;c;Zm9v", "\x07b\x9b2J", "\tc\r\n")]
    assert command() == 0
    assert capsys.readouterr().out.rstrip("\n") == "a�]52;c;Zm9v�b�2J\tc"


def test_a_conversation_remembers_until_reset(server):
    server.answers = [stream_of("one"), stream_of("two"), stream_of("three")]
    conversation = Conversation(server.client, "m", "sys", {})
    assert "".join(conversation.ask("a")) == "one"
    assert "".join(conversation.ask("b")) == "two"
    roles = [message["role"] for message in server.bodies[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    conversation.reset()
    assert "".join(conversation.ask("c")) == "three"
    assert [m["content"] for m in server.bodies[2]["messages"]] == ["sys", "c"]


def test_an_answer_stopped_early_stays_as_far_as_it_came(server):
    server.answers = [stream_of("one", "two", "three")]
    conversation = Conversation(server.client, "m", None, {})
    pieces = conversation.ask("a")
    while next(pieces) != "two":
        pass
    pieces.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": "onetwo"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(404, json={"error": {"message": "no such model"}}), "no such model"),
        (
            httpx.Response(401, json={"error": {"message": "a key"}}),
            "a key; give it with --api-key",
        ),
        (httpx.Response(502, text="<html>"), "502"),
        (httpx.ConnectError("refused"), "no server answers at http://server"),
        (httpx.ReadTimeout("slow"), "broke"),
        (
            httpx.Response(200, text='data: {"error": {"message": "engine died"}}\n\n'),
            "engine died",
        ),
    ],
)
def test_problems_are_one_line_and_the_question_is_forgotten(server, answer, words, capsys):
    server.answers = [answer, answer]
    assert command() == 1
    assert words in capsys.readouterr().err
    conversation = Conversation(server.client, "m", None, {})
    with pytest.raises(ServerProblem, match=words):
        list(conversation.ask("a"))
    assert conversation.messages == []


def test_the_prompt_loop(server, monkeypatch, capsys):
    lines = iter(["", "hi", "/what", "/reset", "again", " /bad", "/exit", "never"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    server.answers = [stream_of("one"), stream_of("two"), httpx.Response(500)]
    assert command(None, model="second") == 0
    captured = capsys.readouterr()
    assert "one\n" in captured.out
    assert "The conversation is forgotten." in captured.out
    assert "There is no /what" in captured.err and "500" in captured.err
    assert server.bodies[2]["messages"][-1]["content"] == "/bad"
    assert [len(body["messages"]) for body in server.bodies] == [1, 1, 3]
    assert {body["model"] for body in server.bodies} == {"second"}
    assert next(lines) == "never"


def test_ctrl_c_stops_the_answer_and_a_second_one_leaves(server, monkeypatch, capsys):
    def interrupt():
        yield b'data: {"choices": [{"delta": {"content": "par"}}]}\n\n'
        raise KeyboardInterrupt

    def ask(prompt):
        if not server.bodies:
            return "hi"
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    server.answers = [httpx.Response(200, content=interrupt())]
    assert command(None) == 130
    assert "par [stopped]" in capsys.readouterr().out


def test_a_question_from_a_pipe(server, monkeypatch, capsys):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n"))
    server.answers = [stream_of("That.")]
    assert command(None) == 0
    assert server.bodies[0]["messages"][0]["content"] == "What?"


def test_models_are_listed_with_their_phase(server, capsys):
    assert terminal_models.models_command(SETTINGS) == 0
    output = capsys.readouterr().out
    assert "smollm2-135m-instruct" in output
    assert "loading 50%: [x] half" in output
    assert output.endswith("May be loaded: new\n")


def test_without_a_server_the_built_in_names_are_still_listed(capsys):
    assert terminal_models.models_command(ClientSettings(url="http://127.0.0.1:9")) == 1
    captured = capsys.readouterr()
    for name in BUILT_IN:
        assert name in captured.out
    assert "no server answers" in captured.err


def test_the_key_is_sent():
    with terminal_client.open_client(SETTINGS) as client:
        assert client.headers["authorization"] == "Bearer k"
