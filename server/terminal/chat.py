"""`tandem chat`: a conversation with a running server, over HTTP like any client."""

import contextlib
import shutil
import sys
from collections.abc import Generator
from typing import Any

import httpx
import typer

from server.settings import ClientSettings
from server.terminal.client import ServerProblem, first_text_model, open_client, read_events
from server.terminal.word_wrap import WordWrap

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."

_LOOPS = {"max_pattern_size": 48, "min_count": 8}
"""The rule for answers that repeat themselves: small models may do so to the end of their context,
and nobody wants to read that."""


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
                _converse(conversation)
            else:
                _answer(conversation, question)
        except ServerProblem as problem:
            typer.echo(f"tandem: {problem}", err=True)
            return 1
        except KeyboardInterrupt:
            typer.echo()
            return 130
    return 0


class Conversation:
    """The messages so far, and the options for the next answer."""

    def __init__(
        self, client: httpx.Client, model: str, system: str | None, sampling: dict[str, Any]
    ) -> None:
        self.model = model
        self._client = client
        self._system = [{"role": "system", "content": system}] if system else []
        self._sampling = sampling
        self.messages: list[dict[str, str]] = []
        self.repeats_itself = False
        """Whether the last answer was ended because it repeated itself."""
        self.reset()

    def reset(self) -> None:
        self.messages = [*self._system]

    def ask(self, question: str) -> Generator[str, None, None]:
        """Pieces of the answer as they come. The part that was received stays in the conversation,
        even if the answer is stopped early; a question that failed does not.

        Raises:
            ServerProblem: the server refused the question, or the connection broke.
        """
        self.messages.append({"role": "user", "content": question})
        body = {
            **self._sampling,
            "model": self.model,
            "messages": self.messages,
            "repetition_detection": _LOOPS,
            "stream": True,
        }
        answer = ""
        self.repeats_itself = False
        try:
            for event in read_events(self._client, "/v1/chat/completions", body):
                for choice in event.get("choices", ()):
                    piece = choice["delta"].get("content") or ""
                    answer += piece
                    self.repeats_itself |= choice.get("finish_reason") == "repetition"
                    yield piece
        finally:
            if answer:
                self.messages.append({"role": "assistant", "content": answer})
            else:
                self.messages.pop()


def _answer(conversation: Conversation, question: str) -> None:
    try:
        _show(conversation.ask(question))
    except ServerProblem:
        if conversation.messages[-1:] and conversation.messages[-1]["role"] == "assistant":
            typer.echo()  # the problem gets a line of its own, below the part that came
        raise
    typer.echo()
    if conversation.repeats_itself:
        typer.echo("[The answer repeated itself and was stopped.]", err=True)


def _show(answer: Generator[str, None, None]) -> None:
    wrap = WordWrap(_terminal_width) if sys.stdout.isatty() else None
    with contextlib.closing(answer) as pieces:
        try:
            for piece in pieces:
                typer.echo(piece if wrap is None else wrap.feed(piece), nl=False)
        finally:
            if wrap is not None:
                typer.echo(wrap.flush(), nl=False)


def _terminal_width() -> int:
    return shutil.get_terminal_size().columns


def _converse(conversation: Conversation) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() editing and a history
    typer.echo(f"{conversation.model}. {_HELP}")
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            typer.echo()
            return
        if line == "/exit":
            return
        if line == "/reset":
            conversation.reset()
            typer.echo("The conversation is forgotten.")
        elif line.startswith("/"):
            typer.echo(_HELP)
        elif line:
            _answer_or_explain(conversation, line)


def _answer_or_explain(conversation: Conversation, question: str) -> None:
    try:
        _answer(conversation, question)
    except KeyboardInterrupt:
        typer.echo(" [stopped]")
    except ServerProblem as problem:
        typer.echo(problem, err=True)
