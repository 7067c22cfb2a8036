"""Tells the operator how loading goes and, once it is over, how to ask the first question."""

import asyncio
import json
import shlex
import time
from collections.abc import Callable

import structlog

from engine.client import EngineClient
from engine.types import ModelStatus, Phase
from server.listen import Listener
from server.settings import Settings

_POLL_S = 0.1
_QUIET_S = 5.0
_SETTLED = (Phase.READY, Phase.FAILED, Phase.STOPPED)

log = structlog.get_logger(__name__)


class Announcer:
    """Watches the models until each is ready or has failed. `tell` writes one line for people."""

    def __init__(
        self,
        settings: Settings,
        engine: EngineClient,
        listener: Listener,
        tell: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._listener = listener
        self._tell = tell
        self._told: dict[str, tuple[ModelStatus, float]] = {}

    async def run(self) -> None:
        """Report until loading is over, then print a curl line that works."""
        log.info("listening", url=str(self._listener.uds or self._listener.url))
        while True:
            statuses = self._engine.statuses()
            for status in statuses:
                self._report(status)
            if all(status.phase in _SETTLED for status in statuses):
                break
            await asyncio.sleep(_POLL_S)
        ready = [status.model for status in statuses if status.phase is Phase.READY]
        if not ready:
            return
        curl = curl_line(self._listener, ready[0], with_key=bool(self._settings.read_api_keys()))
        if self._settings.log_format == "json":
            log.info("ready", models=ready, try_with=curl)
        else:
            self._tell(f"\nReady. Try:\n\n  {curl}\n")

    def _report(self, status: ModelStatus) -> None:
        """One line per phase, per tenth of its progress, and per news after some silence."""
        now = time.monotonic()
        before, told_s = self._told.get(status.model, (None, 0.0))
        if before is not None and not _is_news(before, status, now - told_s):
            return
        self._told[status.model] = (status, now)
        if status.phase is Phase.FAILED:
            log.error(
                "model failed to load",
                model=status.model,
                code=status.error_code,
                cause=status.detail,
            )
        elif status.phase is not Phase.READY:  # that the engine reports itself
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


def curl_line(listener: Listener, model: str, *, with_key: bool) -> str:
    """A first question that can be pasted into a shell."""
    message = {"role": "user", "content": "Say hello in one sentence."}
    fields = {"model": model, "messages": [message], "max_tokens": 64, "temperature": 0}
    body = json.dumps(fields)
    words = ["curl"]
    if listener.uds is not None:
        words += ["--unix-socket", shlex.quote(str(listener.uds))]
    words += [f"{listener.url}/v1/chat/completions", "-H", "'Content-Type: application/json'"]
    if with_key:
        words += ["-H", '"Authorization: Bearer $API_KEY"']
    return " ".join([*words, "-d", shlex.quote(body)])
