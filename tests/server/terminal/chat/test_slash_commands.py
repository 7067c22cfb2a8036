"""The commands of a chat: what they change, and what they say when they cannot."""

import base64
import json
import random
import shlex

import httpx
import pytest

from server.terminal.chat.conversation import Conversation
from server.terminal.chat.slash_commands import COMMANDS, SlashCommands
from tests.helpers.server.picture_server import encoded, noise

CARDS = [
    {"id": "plain", "parent": None, "input_modalities": ["text"]},
    {"id": "poet", "parent": "plain", "input_modalities": ["text"]},
    {"id": "seer", "parent": None, "input_modalities": ["text", "image"]},
    {"id": "painter", "parent": None, "architecture": "sd"},
]
PICTURE = base64.b64encode(random.randbytes(60)).decode()


class Chat:
    """A conversation with a server, its commands, and what they have said."""

    def __init__(self, capsys):
        self.bodies = []
        transport = httpx.MockTransport(self._answer)
        self.client = httpx.Client(transport=transport, base_url="http://server")
        self.conversation = Conversation(self.client, "plain", None, {})
        self.commands = SlashCommands(self.client, self.conversation)
        self._capsys = capsys

    def run(self, line):
        self._capsys.readouterr()
        self.commands.run(line)
        captured = self._capsys.readouterr()
        return captured.out + captured.err

    def ask(self, question):
        return "".join(self.conversation.ask(question))

    def _answer(self, request):
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json={"data": CARDS})
        if path in ("/v1/requests", "/ready"):
            return httpx.Response(200, json={"data": [], "models": []})
        self.bodies.append(json.loads(request.content))
        if path == "/v1/images/generations":
            answer = {"data": [{"b64_json": PICTURE}], "size": "8x8", "seed": 7}
            return httpx.Response(200, json=answer)
        event = {"choices": [{"delta": {"content": "yes"}}]}
        return httpx.Response(200, text=f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")


@pytest.fixture
def chat(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat = Chat(capsys)
    with chat.client:
        yield chat


@pytest.fixture
def picture(tmp_path):
    """A picture whose name has a space."""
    file = tmp_path / "my picture.png"
    file.write_bytes(base64.b64decode(encoded(noise())))
    return file


def test_help_has_a_line_for_each_command(chat):
    said = chat.run("/help")
    assert all(f"{command.form} " in said and command.help in said for command in COMMANDS.values())


def test_a_word_that_is_no_command_is_told_with_the_nearest(chat):
    assert "did you mean /model" in chat.run("/modle plain")
    assert "/help" in chat.run("/")


@pytest.mark.parametrize("form", [str, shlex.quote, lambda name: name.replace(" ", "\\ ")])
def test_pictures_go_with_the_next_message_alone(form, chat, picture):
    chat.run("/model seer")
    assert "goes with your next message" in chat.run(f"/image {form(str(picture))}")
    assert "picture 2" in chat.run(f"/image {form(picture.name)}")
    assert chat.ask("what is it?") == "yes"
    *pictures, text = chat.bodies[-1]["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is it?"}
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    assert pictures == 2 * [{"type": "image_url", "image_url": {"url": url}}]
    chat.ask("and now?")
    assert chat.bodies[-1]["messages"][-1]["content"] == "and now?"


def test_pictures_that_cannot_be_attached(chat, picture, tmp_path):
    assert "/model seer switches" in chat.run(f"/image {picture}")
    chat.run("/model seer")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:12])
    with (tmp_path / "large.png").open("wb") as large:
        large.truncate(21 << 20)
    for name, words in {
        "": "/image FILE",
        "nothing.png": "There is no file",
        str(tmp_path): "There is no file",
        "text.png": "text.png",
        "cut.png": "cut.png",
        "large.png": "may have 20",
    }.items():
        assert words in chat.run(f"/image {name}"), name
    assert chat.conversation.pictures == []


def test_drawn_pictures_get_names_of_their_own(chat, tmp_path):
    assert "picture-1.png: 8x8, seed 7" in chat.run("/draw a red circle")
    assert chat.bodies[-1]["prompt"] == "a red circle"
    assert "picture-2.png" in chat.run("/draw another")
    assert (tmp_path / "picture-2.png").read_bytes() == base64.b64decode(PICTURE)


def test_drawings_take_the_options_of_the_command_draw(chat):
    seed = random.randrange(1000)
    chat.run(
        f'/draw --size 64x32 --seed={seed} --lora a:b:-0.5 --lora c --negative-prompt "no -- red" '
        "--steps 3 a -- b: --c"
    )
    assert chat.bodies[-1] == {
        "prompt": "a -- b: --c",
        "size": "64x32",
        "seed": seed,
        "num_inference_steps": 3,
        "loras": [{"name": "a:b", "scale": -0.5}, {"name": "c"}],
        "negative_prompt": "no -- red",
        "output_format": "png",
    }
    bodies = len(chat.bodies)
    for line, words in {
        "": "/draw --size 128x128",
        "--seed 7": "what to draw",
        "--sed 7 x": "did you mean --seed",
        "--seed seven x": "such as 7",
        "--size --seed 7 x": "such as 128x128",
        "--lora": "NAME:0.8",
    }.items():
        assert words in chat.run(f"/draw {line}"), line
    assert len(chat.bodies) == bodies


def test_models_and_adapters(chat):
    assert chat.run("/model").splitlines() == ["plain, used now", "seer, takes pictures"]
    assert chat.run("/adapter").splitlines() == ["poet"]
    chat.run("/adapter poet")
    chat.ask("hi")
    assert chat.bodies[-1]["model"] == "poet"
    assert "plain, used now" in chat.run("/model") and "poet, used now" in chat.run("/adapter")
    chat.run("/adapter none")
    assert chat.conversation.model == "plain"
    assert "there are: plain, seer" in chat.run("/model painter")
    chat.run("/model seer")
    assert "there are none" in chat.run("/adapter poet")
    assert "no adapters" in chat.run("/adapter")
    chat.ask("again")
    assert [m["content"] for m in chat.bodies[-1]["messages"]] == ["hi", "yes", "again"]


def test_system_message_and_settings_shape_the_next_answer(chat):
    chat.run("/system Be brief, please.")
    temperature = round(random.uniform(0, 2), 2)
    chat.run(f"/set temperature {temperature}")
    chat.run("/set max_tokens 7")
    chat.run('/set stop ["x"]')
    chat.ask("hi")
    body = chat.bodies[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief, please."}
    assert (body["temperature"], body["max_tokens"], body["stop"]) == (temperature, 7, ["x"])
    assert f"temperature {temperature}" in chat.run("/set")
    chat.run("/set temperature default")
    chat.run("/system none")
    chat.ask("hi")
    assert "temperature" not in chat.bodies[-1]
    assert chat.bodies[-1]["messages"][0]["role"] == "user"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("temperature 3", "0 to 2"),
        ("temperature hot", "0 to 2"),
        ("temperature true", "0 to 2"),
        ("top_p NaN", "must be a number"),
        ("temprature 1", "did you mean temperature"),
        ("messages []", "There is no setting messages"),
    ],
)
def test_settings_that_cannot_be(text, words, chat):
    assert words in chat.run(f"/set {text}")
    assert chat.conversation.sampling == {}


def test_a_conversation_is_saved_for_its_owner_and_goes_on(chat, tmp_path, capsys):
    chat.run("/set seed 5")
    chat.run("/system Be kind.")
    chat.ask("hällo")
    assert "2 messages" in chat.run("/save chat.json")
    assert (tmp_path / "chat.json").stat().st_mode & 0o777 == 0o600
    other = Chat(capsys)
    assert "2 messages with plain" in other.run("/load chat.json")
    other.ask("and?")
    assert [m["content"] for m in other.bodies[-1]["messages"]] == [
        *("Be kind.", "hällo", "yes", "and?")
    ]
    assert other.bodies[-1]["seed"] == 5
    other.run("/save chat.json")
    assert "4 messages" in chat.run("/load chat.json")


def test_a_saved_conversation_with_a_model_that_is_gone(chat):
    chat.conversation.model = "gone"
    chat.ask("hi")
    chat.run("/save chat.json")
    chat.conversation.model = "seer"
    assert "gone, which is not served; seer goes on" in chat.run("/load chat.json")
    assert chat.conversation.model == "seer"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"form": "tandem-chat"}', "[" * 100_000, "\x00", '{"form": "other"}']
)
def test_other_files_are_neither_loaded_nor_written_over(text, chat, tmp_path):
    (tmp_path / "other").write_text(text)
    chat.ask("hi")
    for command in ("/load other", "/save other"):
        assert "is not a conversation" in chat.run(command)
    assert (tmp_path / "other").read_text() == text
    assert len(chat.conversation.messages) == 2
    assert "cannot be read" in chat.run("/load nothing")
    assert "cannot be written" in chat.run("/save no/folder")
    assert "is not a saved conversation" in chat.run("/load /dev/zero")


def test_words_are_completed(chat):
    assert {"/model", "/image", "/exit"} <= {*chat.commands.complete("/m")}
    assert chat.commands.complete("hello") == []
    assert [*chat.commands.complete("/model s")] == ["plain", "seer"]
    assert [*chat.commands.complete("/adapter ")] == ["poet", "none"]
    assert "temperature" in chat.commands.complete("/set te")
    assert [*chat.commands.complete("/image ")] == []
