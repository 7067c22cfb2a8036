"""Shows the operator the progress of loading and, at its end, how to send first requests."""

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from engine.contract.status import ModelStatus, Phase
from engine.worker.client import EngineClient
from server.http.served_operation import FirstQuestion
from server.process.listen import Listener
from server.served import SERVED
from server.settings import ClientSettings, Settings

if TYPE_CHECKING:  # it brings rich, which is for terminals only
    from server.process.start_screen import StartScreen

_POLL_S = 0.1
_QUIET_S = 5.0
_SETTLED = (Phase.READY, Phase.SLEEPING, Phase.FAILED, Phase.STOPPED)
_TOLD_BY_ENGINE = (Phase.READY, Phase.SLEEPING, Phase.DRAINING, Phase.STOPPED)

log = structlog.get_logger(__name__)


class Announcer:
    """Watches the models until each is ready or has failed.

    With a screen, progress is shown there and not logged, and `tell` writes first requests for
    people.
    """

    def __init__(
        self,
        settings: Settings,
        engine: EngineClient,
        listener: Listener,
        tell: Callable[[str], None],
        screen: "StartScreen | None" = None,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._listener = listener
        self._tell = tell
        self._screen = screen
        self._told: dict[str, tuple[ModelStatus, float]] = {}
        self.nothing_serves = False
        """Whether loading is over and every model has failed."""

    async def run(self) -> None:
        """Report until loading is over, then show first requests."""
        log.info("listening", url=str(self._listener.uds or self._listener.url))
        with self._screen or contextlib.nullcontext():
            statuses = await self._watch(
                self._report if self._screen is None else self._screen.show
            )
        served = (Phase.READY, Phase.SLEEPING)
        ready = [status.model for status in statuses if status.phase in served]
        if not ready:
            self.nothing_serves = {status.phase for status in statuses} == {Phase.FAILED}
            return
        lines = self._first_questions()
        if self._screen is None:
            log.info("ready", models=ready, try_with=lines)
        else:
            path = "" if self._settings.playground else "/docs"
            page = "" if self._listener.uds else f"\nOr open {self._listener.url}{path}\n"
            call = "Set API_KEY to a key and try" if self._settings.read_api_keys() else "Try"
            shown = "".join(f"  {line}\n" for line in lines)
            self._tell(f"\nReady. {call}:\n\n{shown}{page}")

    async def _watch(self, report: Callable[[ModelStatus], None]) -> list[ModelStatus]:
        """Report until every model has finished loading or failed."""
        seen: set[str] = set()
        while True:
            # A client that loads a model later learns it from the request.
            statuses = [status for status in self._engine.statuses() if not status.joining]
            for name in seen - {status.model for status in statuses}:
                report(ModelStatus(model=name, phase=Phase.STOPPED))
            seen = {status.model for status in statuses}
            for status in statuses:
                report(status)
            if all(status.phase in _SETTLED for status in statuses):
                return statuses
            await asyncio.sleep(_POLL_S)

    def _first_questions(self) -> list[str]:
        """Shell lines for the first model made for each operation, as far as there are models."""
        with_key = bool(self._settings.read_api_keys())
        questions = [
            served.first_question(info.model)
            for operation, served in SERVED.items()
            for info in self._engine.made_for(operation)[:1]
        ]
        lines = [shell_line(self._listener, question, with_key=with_key) for question in questions]
        return [line for line in lines if line is not None]

    def _report(self, status: ModelStatus) -> None:
        """Log one line per phase, per tenth of its progress, and per change after some silence."""
        now = time.monotonic()
        before, told_s = self._told.get(status.model, (None, 0.0))
        if before is not None and not _is_news(before, status, now - told_s):
            return
        self._told[status.model] = (status, now)
        if status.failure is not None:
            hint = {} if status.failure.hint is None else {"hint": status.failure.hint}
            log.error(
                "model failed to load",
                model=status.model,
                code=status.failure.code,
                cause=status.failure.message,
                **hint,
            )
        elif status.phase not in _TOLD_BY_ENGINE:
            progress = None if status.progress is None else f"{status.progress:.0%}"
            fields = {"progress": progress, "detail": status.detail}
            given = {name: value for name, value in fields.items() if value is not None}
            log.info("model loading", model=status.model, phase=status.phase.value, **given)


def _is_news(before: ModelStatus, after: ModelStatus, silence_s: float) -> bool:
    if before.phase is not after.phase:
        return True
    if int(10 * (before.progress or 0)) != int(10 * (after.progress or 0)):
        return True
    return before != after and silence_s >= _QUIET_S


def shell_line(listener: Listener, question: FirstQuestion, *, with_key: bool) -> str | None:
    """A first question that can be pasted into a shell in this folder; None if no single line can
    ask it."""
    if question.words and listener.uds is None:
        return _own_line(listener, question, with_key=with_key)
    return _curl_line(listener, question, with_key=with_key) if question.path else None


def _own_line(listener: Listener, question: FirstQuestion, *, with_key: bool) -> str:
    words = [own_command(), *map(_quoted, question.words)]
    if listener.url != ClientSettings.model_fields["url"].default:
        words += ["--url", listener.url]
    return " ".join([*words, '--api-key "$API_KEY"'] if with_key else words)


def _curl_line(listener: Listener, question: FirstQuestion, *, with_key: bool) -> str:
    words = ["curl"]
    if listener.uds is not None:
        words += ["--unix-socket", shlex.quote(str(listener.uds))]
    words += [f"{listener.url}{question.path}", "-H", "'Content-Type: application/json'"]
    if with_key:
        words += ["-H", '"Authorization: Bearer $API_KEY"']
    return " ".join([*words, "-d", shlex.quote(json.dumps(question.fields))])


def _quoted(word: str) -> str:
    """The word, in double quotes if they are safe, because these are easier to read."""
    if re.fullmatch(r"[\w .,?-]*", word) and " " in word:
        return f'"{word}"'
    return shlex.quote(word)


def own_command() -> str:
    """The command by which a shell in this folder calls `tandem`."""
    own = Path(sys.executable).with_name("tandem")
    if not own.exists():
        return f"{shlex.quote(sys.executable)} -m server"
    found = shutil.which("tandem")
    if found is not None and os.path.samefile(found, own):
        return "tandem"
    return shlex.quote(os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own))
