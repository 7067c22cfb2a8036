"""What a line that begins with `/` asks of a chat."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import typer

from engine.contract.sampling_params import SAMPLER_PARAMETERS, SamplerParameter
from engine.errors import InvalidParameter
from server.images.files import base64_text
from server.images.header import IN_CHATS, read_header
from server.settings.problem import did_you_mean
from server.terminal.chat.conversation import Conversation
from server.terminal.chat.drawing import DRAW_OPTIONS, DrawingProblem, drawing_fields
from server.terminal.chat.saved_chat import SavedChatProblem, load_chat, save_chat
from server.terminal.client import Card, ServerProblem, fetch_text_cards
from server.terminal.pictures import FileProblem, PictureOrder, draw_picture

_NONE, _DEFAULT = "none", "default"
_MAX_PICTURE_BYTES = 20 << 20
_NO_LIMIT = 1 << 60
"""How large a picture may be is the server's to say."""
_SETTABLE = (*SAMPLER_PARAMETERS, "max_tokens", "min_tokens", "seed", "stop", "reasoning_effort")


_MESSAGES = """
A message may have several lines: end each but the last with a backslash,
or put three quotes (\"\"\") before the first and after the last.
Ctrl-C stops an answer. The arrow keys bring earlier lines back."""


class Misuse(Exception):
    """A command cannot be carried out. `str(misuse)` is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class _Command:
    """A command, and its line in the help."""

    form: str
    help: str
    run: Callable[["SlashCommands", str], None]


class SlashCommands:
    """The commands of one chat."""

    def __init__(self, client: httpx.Client, conversation: Conversation) -> None:
        self._client = client
        self._chat = conversation

    def run(self, line: str) -> None:
        """Carry out a line, and print the outcome."""
        name, _, rest = line.partition(" ")
        command = COMMANDS.get(name)
        try:
            if command is None:
                raise Misuse(
                    f"There is no {name}{did_you_mean(name, COMMANDS).rstrip('?')}; /help lists "
                    "the commands. To send the line as a message, put a space before it."
                )
            command.run(self, rest.strip())
        except (Misuse, DrawingProblem, SavedChatProblem, FileProblem, ServerProblem) as problem:
            typer.echo(problem, err=True)

    def complete(self, line: str) -> Sequence[str]:
        """What the word at the end of a line may become; nothing for names of files."""
        name, space, _ = line.partition(" ")
        if not space:
            return [one for one in COMMANDS if line.startswith("/")]
        try:
            if name == "/model":
                return [card["id"] for card in self._bases()]
            if name == "/adapter":
                return [*(card["id"] for card in self._adapters()), _NONE]
        except ServerProblem:
            return ()
        return {"/set": _SETTABLE, "/draw": DRAW_OPTIONS}.get(name, ())

    def help(self, _: str) -> None:
        width = max(len(command.form) for command in COMMANDS.values())
        for command in COMMANDS.values():
            typer.echo(f"{command.form:<{width}}  {command.help}")
        typer.echo(_MESSAGES)

    def reset(self, _: str) -> None:
        self._chat.reset()
        typer.echo("The conversation is forgotten.")

    def attach(self, name: str) -> None:
        if not name:
            raise Misuse("Say which picture: /image FILE")
        card = self._card(self._chat.model)
        if card is not None and "image" not in card.get("input_modalities", ["image"]):
            seeing = [c["id"] for c in self._bases() if "image" in c.get("input_modalities", ())]
            raise Misuse(
                f"{self._chat.model} does not take pictures. "
                + (
                    f"/model {seeing[0]} switches to one that does."
                    if seeing
                    else "None here does."
                )
            )
        path = _path(name)
        self._chat.pictures.append(_data_url(path))
        count = len(self._chat.pictures)
        typer.echo(
            f"{path.name} goes with your next message"
            + (f", as picture {count}." if count > 1 else ". /image adds more.")
        )

    def draw(self, text: str) -> None:
        order = PictureOrder(
            path="/v1/images/generations",
            fields=drawing_fields(text),
            output=_new_file("picture", ".png"),
            doing="drawing",
        )
        draw_picture(self._client, order)

    def model(self, name: str) -> None:
        cards = self._bases()
        if not name:
            current = self._base()
            for card in cards:
                sees = ", takes pictures" if "image" in card.get("input_modalities", ()) else ""
                here = ", used now" if card["id"] == current else ""
                typer.echo(f"{card['id']}{sees}{here}")
            return
        self._choose(name, cards, f"text model {name}")
        typer.echo(f"{name} answers from now on. It knows what was said; /reset forgets it.")

    def adapter(self, name: str) -> None:
        cards = self._adapters()
        if not name:
            for card in cards:
                here = ", used now" if card["id"] == self._chat.model else ""
                typer.echo(f"{card['id']}{here}")
            if not cards:
                typer.echo(f"{self._base()} has no adapters here.")
            return
        if name == _NONE:
            self._chat.model = self._base()
            typer.echo(f"{self._chat.model} answers without an adapter from now on.")
            return
        self._choose(name, cards, f"adapter {name} of {self._base()}")
        typer.echo(f"{self._base()} answers with {name} from now on. /adapter none ends that.")

    def system(self, text: str) -> None:
        if text:
            self._chat.system = None if text == _NONE else text
        typer.echo(f"System message: {self._chat.system or _NONE}")

    def set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        sampling = self._chat.sampling
        if not name:
            for known, now in sampling.items():
                typer.echo(f"{known} {json.dumps(now)}")
            if not sampling:
                typer.echo(
                    "Nothing is set, so the model's own values hold. Try /set temperature 0.7"
                )
            return
        if name not in _SETTABLE:
            hint = did_you_mean(name, _SETTABLE) or f"; there are {', '.join(_SETTABLE)}"
            raise Misuse(f"There is no setting {name}{hint}")
        value = value.strip()
        if value == _DEFAULT:
            sampling.pop(name, None)
        elif value:
            sampling[name] = _checked(name, value)
        undo = f" /set {name} default undoes it." if value != _DEFAULT and name in sampling else ""
        now = json.dumps(sampling[name]) if name in sampling else "the model's own"
        typer.echo(f"{name} is {now}.{undo}")

    def save(self, name: str) -> None:
        if not name:
            raise Misuse("Say where: /save FILE")
        path = _path(name)
        save_chat(self._chat, path)
        count = len(self._chat.messages)
        typer.echo(f"{path}: {count} message{'s' * (count != 1)}. /load {name} continues here.")

    def load(self, name: str) -> None:
        if not name:
            raise Misuse("Say which conversation: /load FILE")
        model = load_chat(self._chat, _path(name))
        if self._card(model) is not None:
            self._chat.model = model
        else:
            typer.echo(f"It was with {model}, which is not served; {self._chat.model} goes on.")
        count = len(self._chat.messages)
        typer.echo(f"{count} message{'s' * (count != 1)} with {self._chat.model}. Go on:")

    def _choose(self, name: str, cards: list[Card], wanted: str) -> None:
        names = [card["id"] for card in cards]
        if name not in names:
            raise Misuse(
                f"There is no {wanted} that is ready here; "
                + (f"there are: {', '.join(names)}" if names else "there are none")
            )
        self._chat.model = name

    def _bases(self) -> list[Card]:
        return [card for card in fetch_text_cards(self._client) if not card.get("parent")]

    def _adapters(self) -> list[Card]:
        base = self._base()
        return [card for card in fetch_text_cards(self._client) if card.get("parent") == base]

    def _base(self) -> str:
        """The model, without its adapter."""
        card = self._card(self._chat.model)
        return (card and card.get("parent")) or self._chat.model

    def _card(self, model: str) -> Card | None:
        return next((one for one in fetch_text_cards(self._client) if one["id"] == model), None)


COMMANDS = {
    command.form.partition(" ")[0]: command
    for command in (
        _Command("/image FILE", "send a picture along with the next message", SlashCommands.attach),
        _Command(
            "/draw [OPTIONS] PROMPT",
            "draw a picture; options: --size 128x128 --seed 7 --lora NAME:0.8",
            SlashCommands.draw,
        ),
        _Command("/model [NAME]", "list the models, or switch to another", SlashCommands.model),
        _Command(
            "/adapter [NAME]",
            "list the model's adapters, or use one (none: use none)",
            SlashCommands.adapter,
        ),
        _Command(
            "/system [TEXT]",
            "show the system message, or set it (none: remove it)",
            SlashCommands.system,
        ),
        _Command(
            "/set [NAME VALUE]",
            "show or set what shapes answers: /set temperature 0.7",
            SlashCommands.set,
        ),
        _Command("/save FILE", "write the conversation to a file", SlashCommands.save),
        _Command("/load FILE", "go on with a conversation from a file", SlashCommands.load),
        _Command("/reset", "forget the conversation", SlashCommands.reset),
        _Command("/help", "show these lines", SlashCommands.help),
        _Command("/exit", "leave, as Ctrl-D does", lambda commands, _: None),
    )
}
"""All commands by name. The loop of the chat itself ends it."""


def _path(name: str) -> Path:
    """A path as it was typed, or dropped on the terminal: quoted, or with its spaces marked."""
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        name = name[1:-1]
    return Path(name.replace("\\ ", " ")).expanduser()


def _data_url(path: Path) -> str:
    try:
        if not path.is_file():
            raise Misuse(f"There is no file {path}")
        size = path.stat().st_size
        if size > _MAX_PICTURE_BYTES:
            most = _MAX_PICTURE_BYTES >> 20
            raise Misuse(f"{path} has {size >> 20} MiB; a picture may have {most}; make it smaller")
        data = path.read_bytes()
        header = read_header(
            data, param=path.name, max_pixels=_NO_LIMIT, max_side=_NO_LIMIT, formats=IN_CHATS
        )
    except OSError as error:
        raise Misuse(f"{path} cannot be read: {error.strerror}") from None
    except InvalidParameter as error:
        raise Misuse(error.message) from None
    return f"data:image/{header.format.lower()};base64,{base64_text(data)}"


def _new_file(stem: str, ending: str) -> Path:
    """The first name in the working folder that is free."""
    number = 1
    while (path := Path(f"{stem}-{number}{ending}")).exists():
        number += 1
    return path


def _checked(name: str, text: str) -> Any:
    """The value of a setting: a number, list or the like as JSON has it; anything else is text.

    Raises:
        Misuse: it is not a number within the bounds of a setting that is one.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    known = SAMPLER_PARAMETERS.get(name)
    if known is not None and known.kind in (int, float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and _is_within(value, known)):
            raise Misuse(f"{name} must be a number: {known.bounds}")
    return value


def _is_within(value: float, known: SamplerParameter) -> bool:
    if known.choices:
        return value in known.choices
    return (
        (known.ge is None or value >= known.ge)
        and (known.gt is None or value > known.gt)
        and (known.le is None or value <= known.le)
    )
