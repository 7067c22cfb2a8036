"""Sends orders as clients with good and bad manners do, and reduces answers to their bits."""

import asyncio
import base64
import hashlib
import json
import socket
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from loadtest.sse import EventParser
from tools.endurance.order import Order
from tools.endurance.patience import PatientClock

Manner = Literal["whole", "stream", "slow", "leave", "leave early"]
MANNERS: tuple[Manner, ...] = ("whole", "stream", "slow", "leave", "leave early")
_SLOW_PAUSE_S = 0.1
_MOST_PAUSES = 20
_SMALL_BUFFER_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        status: None if there was no HTTP answer, or the client left.
        bits: what must be equal for equal bodies; None without a whole answer.
        code: of an error in OpenAI's shape.
        problem: why this is neither an answer nor such an error; None if it is one.
        has_left: the client left, as it meant to.
        is_lost: the connection was refused or ended without an answer.
    """

    status: int | None
    seconds: float
    bits: str | None = None
    code: str | None = None
    problem: str | None = None
    has_left: bool = False
    is_lost: bool = False


class Asker:
    """Asks one server; each order on a connection of its own."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self._timeout_s = timeout_s

    async def ask(self, order: Order, manner: Manner = "whole", pieces: int = 1) -> Answer:
        """Send an order. `pieces`: after how many parts of its stream a client leaves."""
        began, clock = time.monotonic(), PatientClock()
        asking = asyncio.create_task(self._ask(order, manner, pieces, began))
        await clock.wait_for(asking, self._timeout_s)
        if not asking.done():
            asking.cancel()
            await asyncio.wait({asking})
            return Answer(None, clock.seconds, problem=f"no end in {self._timeout_s:g} s")
        try:
            return await asking
        except httpx.HTTPError as error:
            problem = f"connection lost: {type(error).__name__} {error}".strip()
        return Answer(None, time.monotonic() - began, problem=problem, is_lost=True)

    async def _ask(self, order: Order, manner: Manner, pieces: int, began: float) -> Answer:
        as_stream = order.streams and manner not in ("whole", "leave early")
        content = order.body
        if isinstance(content, dict):
            content = json.dumps(content | {"stream": True} if as_stream else content).encode()
        async with self._client(manner == "slow") as client:
            request = client.build_request(
                "POST",
                f"{self.url}{order.path}",
                content=content,
                headers={"Content-Type": "application/json", "Connection": "close"},
            )
            if manner == "leave early":
                return await self._leave_early(client, request, pieces, began)
            response = await client.send(request, stream=True)
            try:
                body, has_left = b"", False
                async for piece in self._pieces(response, manner):
                    body += piece
                    pieces -= 1
                    if manner == "leave" and as_stream and pieces <= 0:
                        has_left = True
                        break
            finally:
                await response.aclose()
        seconds = time.monotonic() - began
        if has_left:
            return Answer(response.status_code, seconds, has_left=True)
        return judged(response.status_code, body, as_stream, seconds)

    def _client(self, is_slow: bool) -> httpx.AsyncClient:
        options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)] if is_slow else None
        transport = httpx.AsyncHTTPTransport(socket_options=options)
        return httpx.AsyncClient(transport=transport, timeout=None, trust_env=False)

    async def _leave_early(
        self, client: httpx.AsyncClient, request: httpx.Request, pieces: int, began: float
    ) -> Answer:
        """Leave before the answer, unless it comes within some tenths of a second."""
        try:
            async with asyncio.timeout(0.1 * pieces):
                response = await client.send(request)
        except TimeoutError:
            return Answer(None, time.monotonic() - began, has_left=True)
        return judged(response.status_code, response.content, False, time.monotonic() - began)

    @staticmethod
    async def _pieces(response: httpx.Response, manner: Manner) -> AsyncIterator[bytes]:
        num_pauses = 0
        async for piece in response.aiter_raw():
            yield piece
            if manner == "slow" and num_pauses < _MOST_PAUSES:
                num_pauses += 1
                await asyncio.sleep(_SLOW_PAUSE_S)


def judged(status: int, body: bytes, as_stream: bool, seconds: float) -> Answer:
    """An answer from its status and whole body."""
    try:
        if status != 200:
            code, message = _error(json.loads(body))
            problem = None if message else f"HTTP {status} without a message"
            return Answer(status, seconds, code=code, problem=problem)
        if not as_stream:
            return Answer(status, seconds, bits=_digest(_whole(json.loads(body))))
        return _of_stream(body, seconds)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        start = body[:200].decode(errors="replace")
        problem = f"HTTP {status}, malformed ({type(error).__name__} {error}): {start}"
        return Answer(status, seconds, problem=problem)


def _error(document: dict[str, Any]) -> tuple[str | None, str]:
    error = document["error"]
    return error.get("code") or error.get("type"), error["message"]


def _of_stream(body: bytes, seconds: float) -> Answer:
    events = EventParser().feed(body)
    if not events or events[-1] != b"[DONE]":
        return Answer(200, seconds, problem="the stream ended without [DONE]")
    documents = [json.loads(event) for event in events[:-1]]
    for document in documents:
        if "error" in document:
            code, message = _error(document)
            problem = None if message else "an error event without a message"
            return Answer(200, seconds, code=code, problem=problem)
    return Answer(200, seconds, bits=_digest(_joined(documents)))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _whole(document: dict[str, Any]) -> Any:
    """The bits of an unstreamed answer: everything except ids and times."""
    if "choices" in document:
        return [_choice(choice, choice.get("message")) for choice in document["choices"]]
    data = document["data"]
    if "b64_json" in data[0]:
        return [_picture(one["b64_json"]) for one in data]
    return [one["embedding"] for one in data]


def _picture(encoded: str) -> str:
    return hashlib.sha256(base64.b64decode(encoded, validate=True)).hexdigest()


def _choice(choice: dict[str, Any], message: dict[str, Any] | None) -> Any:
    text = choice["text"] if message is None else message.get("content") or ""
    calls = [
        [call["function"]["name"], call["function"]["arguments"]]
        for call in (message or {}).get("tool_calls") or ()
    ]
    return [text, calls, choice["finish_reason"], _logprobs(choice)]


def _logprobs(choice: dict[str, Any]) -> list[float]:
    found = choice.get("logprobs") or {}
    if "token_logprobs" in found:
        return list(found["token_logprobs"])
    return [one["logprob"] for one in found.get("content") or ()]


def _joined(documents: list[dict[str, Any]]) -> Any:
    """The bits of a stream, equal to those of the same answer as a whole."""
    if documents and "choices" not in documents[0]:
        return [
            _picture(document["b64_json"])
            for document in documents
            if document["type"].endswith(".completed")
        ]
    choices: dict[int, list[Any]] = defaultdict(lambda: ["", [], None, []])
    for document in documents:
        for choice in document["choices"]:
            parts = choices[choice["index"]]
            delta = choice.get("delta")
            parts[0] += choice["text"] if delta is None else delta.get("content") or ""
            for call in (delta or {}).get("tool_calls") or ():
                function = call["function"]
                while len(parts[1]) <= call["index"]:
                    parts[1].append([function["name"], ""])
                parts[1][call["index"]][1] += function.get("arguments") or ""
            parts[2] = choice.get("finish_reason") or parts[2]
            parts[3] += _logprobs(choice)
    return [parts for _, parts in sorted(choices.items())]
