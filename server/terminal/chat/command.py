"""Prints one answer, or holds a conversation on a terminal."""

import contextlib
import shutil
import sys
from collections.abc import Generator
from typing import Any

import httpx
import typer

from server.settings import ClientSettings
from server.terminal.chat.conversation import Conversation
from server.terminal.client import ServerProblem, first_text_model, open_client
from server.terminal.visible import visible
from server.terminal.word_wrap import WordWrap

_HELP = "/help lists what you can do here, Ctrl-C stops an answer, Ctrl-D leaves."
_NOTES = {
    "repetition": "[The answer repeated itself and was stopped.]",
    "empty": "[The model answered nothing. The question is not kept.]",
}
"""What is shown for answers that ended in an unexpected way."""
_FULL = "[The answer was cut off: the conversation is as long as the model can read.]"
HISTORY = "chat_history"
"""The file in the cache folder with the lines of earlier chats."""


def chat_command(
    settings: ClientSettings,
    question: str | None,
    *,
    model: str | None,
    system: str | None,
    sampling: dict[str, Any],
) -> int:
    """Print one answer, or hold a conversation on a terminal. Returns the exit code."""
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
    with open_client(settings) as client:
        try:
            conversation = Conversation(client, model or first_text_model(client), system, sampling)
            if question is None:
                _converse(client, conversation, settings)
            else:
                _answer(conversation, question)
        except ServerProblem as problem:
            typer.echo(f"tandem: {problem}", err=True)
            return 1
        except KeyboardInterrupt:
            typer.echo()
            return 130
    return 0


def _answer(conversation: Conversation, question: str) -> None:
    try:
        _show(conversation.ask(question))
    except ServerProblem:
        if conversation.messages[-1:] and conversation.messages[-1]["role"] == "assistant":
            typer.echo()  # the problem gets a line of its own, below the part that came
        raise
    typer.echo()
    is_cut = conversation.end == "length" and "max_tokens" not in conversation.sampling
    note = _FULL if is_cut else _NOTES.get(conversation.end or "")
    if note is not None:
        typer.echo(note, err=True)


def _show(answer: Generator[str, None, None]) -> None:
    wrap = WordWrap(_terminal_width) if sys.stdout.isatty() else None
    with contextlib.closing(answer) as pieces:
        try:
            for piece in pieces:
                typer.echo(piece if wrap is None else wrap.feed(visible(piece)), nl=False)
        finally:
            if wrap is not None:
                typer.echo(wrap.flush(), nl=False)


def _terminal_width() -> int:
    return shutil.get_terminal_size().columns


def _converse(client: httpx.Client, conversation: Conversation, settings: ClientSettings) -> None:
    from server.terminal.chat.message_lines import MessageLines
    from server.terminal.chat.slash_commands import SlashCommands

    commands = SlashCommands(client, conversation)
    history = settings.cache_path / HISTORY if settings.chat_history else None
    lines = MessageLines(history, commands.complete)
    typer.echo(f"{conversation.model}. {_HELP}")
    while True:
        typer.echo()
        try:
            line = lines.read()
        except EOFError:
            typer.echo()
            return
        if line.strip() == "/exit":
            return
        if line.startswith("/") and "\n" not in line:
            _interruptible(commands.run, line)
        elif line.strip():
            _interruptible(_answer_or_explain, conversation, line.strip())


def _interruptible(do: Any, *arguments: Any) -> None:
    """Ctrl-C ends what is being done, and not the chat."""
    try:
        do(*arguments)
    except KeyboardInterrupt:
        typer.echo(" [stopped]")


def _answer_or_explain(conversation: Conversation, question: str) -> None:
    try:
        _answer(conversation, question)
    except ServerProblem as problem:
        typer.echo(problem, err=True)
