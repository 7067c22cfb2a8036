"""A streaming client of `/completions` and `/chat/completions` that times every chunk.

Also has `send_timed`, one timed exchange, which the image client shares.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from loadtest.exchange import Connector, ExchangeError, Origin
from loadtest.record import INTERRUPTED, RequestRecord
from loadtest.sse import EventParser
from loadtest.workload import PlannedRequest

MAX_ERROR_BYTES = 4096
_MAX_ERROR_CHARS = 200


@dataclass(frozen=True, slots=True)
class Target:
    """The server under test and how its requests are made.

    `url` is the API's base (`http://127.0.0.1:8000/v1`); `extra_body` is merged into every request.
    Requests name `models` in turn, or `model` if there are none.
    """

    url: str
    model: str
    endpoint: Literal["completions", "chat"] = "completions"
    api_key: str | None = None
    timeout_s: float = 600.0
    keep_alive: bool = False
    temperature: float = 0.0
    ignore_eos: bool = True
    extra_body: dict[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return "/chat/completions" if self.endpoint == "chat" else "/completions"

    def body(self, planned: PlannedRequest) -> dict[str, Any]:
        models = self.models or (self.model,)
        text: dict[str, Any] = (
            {"messages": [{"role": "user", "content": planned.prompt}]}
            if self.endpoint == "chat"
            else {"prompt": planned.prompt}
        )
        body = {
            "model": models[planned.index % len(models)],
            **text,
            "max_tokens": planned.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        return body | self.extra_body


class CompletionClient:
    """Sends planned requests to one target. Use inside one event loop; `close()` when done."""

    def __init__(self, target: Target) -> None:
        self.target = target
        origin = Origin.parse(target.url)
        self._connector = Connector(origin, keep_alive=target.keep_alive)
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Connection": "keep-alive" if target.keep_alive else "close",
        }
        if target.api_key:
            self._headers["Authorization"] = f"Bearer {target.api_key}"

    def encode(self, planned: PlannedRequest) -> bytes:
        """The bytes that `send` will write, encoded before the run to keep the run cheap."""
        body = json.dumps(self.target.body(planned)).encode()
        return self._connector.origin.request("POST", self.target.path, self._headers, body)

    def new_record(self, planned: PlannedRequest) -> RequestRecord:
        return RequestRecord(planned.index, planned.max_tokens, at_s=planned.at_s)

    async def send(self, request: bytes, record: RequestRecord, started: float) -> None:
        """Send `request` and fill in `record`, whatever happens; only cancellation is raised.

        `started` is the run's zero on `time.perf_counter()`.
        """
        sent = time.perf_counter()
        record.sent_s = sent - started
        answer = _Answer(record, sent)
        await send_timed(self._connector, request, record, answer, sent, self.target.timeout_s)

    def close(self) -> None:
        self._connector.close()


class TimedRecord(Protocol):
    """The fields that every exchange fills in; see `RequestRecord`."""

    end_s: float | None
    status: int | None
    error: str | None


class AnswerReader(Protocol):
    """Reads the body of an answer as it arrives. `error` is the server's own error message."""

    error: str | None

    def on_body(self, status: int, piece: bytes, at: float) -> None: ...

    def problem(self, status: int) -> str | None:
        """Why a complete HTTP answer is not what was asked for, or None if it is."""


async def send_timed(
    connector: Connector,
    request: bytes,
    record: TimedRecord,
    answer: AnswerReader,
    sent: float,
    timeout_s: float,
) -> None:
    """Send a request and write its end or failure into `record`; only cancellation is raised.

    `sent` is the current time on `time.perf_counter()`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            status = await connector.send(request, answer.on_body)
        record.status = status
        record.error = answer.problem(status)
    except TimeoutError:
        record.error = f"timeout after {timeout_s:g} s"
    except ExchangeError as error:
        # The server's reason for ending a stream says more than the lost connection.
        record.error = answer.error or str(error)
    except asyncio.CancelledError:
        record.error = INTERRUPTED
        raise
    finally:
        record.end_s = time.perf_counter() - sent


class _Answer:
    """Reads one answer into its record."""

    def __init__(self, record: RequestRecord, sent: float) -> None:
        self._record = record
        self._sent = sent
        self._events = EventParser()
        self._other = b""
        self._done = False
        self.error: str | None = None

    def on_body(self, status: int, piece: bytes, at: float) -> None:
        if status != 200:
            self._other = (self._other + piece)[:MAX_ERROR_BYTES]
            return
        if not self._other and not self._record.text_s:
            self._other = piece[:MAX_ERROR_BYTES]
        for payload in self._events.feed(piece):
            self._on_event(payload, at)

    def problem(self, status: int) -> str | None:
        """Why a complete HTTP answer is not a complete completion, or None if it is."""
        if status != 200:
            return f"HTTP {status}: {error_text(self._other)}"
        if self.error is None and not self._done:
            return f"stream ended without [DONE]: {error_text(self._other)}"
        return self.error

    def _on_event(self, payload: bytes, at: float) -> None:
        if payload == b"[DONE]":
            self._done = True
            return
        try:
            self._on_chunk(json.loads(payload), at)
        except (ValueError, TypeError, AttributeError, KeyError):
            self.error = self.error or f"malformed event: {shortened(payload)}"

    def _on_chunk(self, chunk: dict[str, Any], at: float) -> None:
        if "error" in chunk:
            self.error = f"error event: {error_text(json.dumps(chunk).encode())}"
            return
        for choice in chunk.get("choices") or ():
            if _choice_text(choice):
                self._record.text_s.append(at - self._sent)
            if choice.get("finish_reason"):
                self._record.finish_reason = choice["finish_reason"]
        if usage := chunk.get("usage"):
            self._record.prompt_tokens = usage["prompt_tokens"]
            self._record.output_tokens = usage["completion_tokens"]
            details = usage.get("prompt_tokens_details") or {}
            self._record.cached_tokens = details.get("cached_tokens")


def _choice_text(choice: dict[str, Any]) -> Any:
    """The text of a chunk; empty for the first delta of a chat, which only has the role."""
    delta = choice.get("delta")
    if delta is None:
        return choice.get("text") or ""
    return delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""


def error_text(body: bytes) -> str:
    """The message of an OpenAI error body, or the start of whatever was sent instead."""
    try:
        error = json.loads(body)["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, TypeError, KeyError):
        return shortened(body)
    return shortened(str(message).encode())


def shortened(text: bytes) -> str:
    line = " ".join(text.decode(errors="replace").split())
    return line if len(line) <= _MAX_ERROR_CHARS else line[: _MAX_ERROR_CHARS - 1] + "…"
