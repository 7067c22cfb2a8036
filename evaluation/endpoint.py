"""HTTP to the server under test: one client, patient with a busy server."""

import asyncio
import email.utils
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import httpx

from evaluation.problem import EvaluationProblem

BUSY = (429, 503)
"""Statuses by which a server asks to come back later."""
ATTEMPTS = 8
_LONGEST_WAIT_S = 60.0
_MAX_ERROR_CHARS = 300


class RequestProblem(EvaluationProblem):
    """The server did not answer a request, or refused it.

    Attributes:
        status: None if it did not answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def concerns_all(self) -> bool:
        """Whether other requests would fail in the same way."""
        return self.status in (None, 401, 403, 404, *BUSY)


class Endpoint:
    """An OpenAI-compatible server. Use as an asynchronous context.

    Args:
        url: its address, with or without `/v1`.
        timeout_s: seconds to wait for an answer.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._sleep = sleep
        self._has_answered = False
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            # The number of requests at once is decided by those who ask.
            limits=httpx.Limits(max_connections=None),
            transport=transport,
        )

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def first_model(self) -> str:
        """The id of the first model that the server lists and that may write texts."""
        answer = await self._send("GET", "/v1/models", None)
        # Cards of our server's other kinds of model also have an `architecture`.
        cards = [card for card in answer.get("data", []) if "architecture" not in card]
        if not cards:
            raise EvaluationProblem(f"{self.url} lists no text model; name one with --model")
        return str(cards[0]["id"])

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer to a body.

        Raises:
            RequestProblem: the server refuses, is busy for too long, or does not answer.
        """
        return await self._send("POST", path, body)

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        for attempt in range(ATTEMPTS):
            try:
                response = await self._client.request(method, path, json=body)
            except httpx.TimeoutException:
                raise RequestProblem(
                    f"{self.url} did not answer in time; give it longer with --timeout", 408
                ) from None
            except httpx.HTTPError as error:
                problem = RequestProblem(
                    f"no server answers at {self.url} ({type(error).__name__}); start one, or "
                    "give its address with --url"
                )
                if not self._has_answered:
                    raise problem from None
                wait_s = _growing(attempt)
            else:
                self._has_answered = True
                if response.status_code == 200:
                    return _json_of(response)
                problem = RequestProblem(_refusal(response), response.status_code)
                if response.status_code not in BUSY:
                    raise problem
                wait_s = _retry_after(response) or _growing(attempt)
            if attempt + 1 < ATTEMPTS:
                await self._sleep(min(wait_s, _LONGEST_WAIT_S))
        raise problem


def _growing(attempt: int) -> float:
    return 0.5 * 2.0**attempt


def _retry_after(response: httpx.Response) -> float | None:
    """The seconds of the header `Retry-After`, which may also be a date."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _json_of(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise RequestProblem(
            f"{response.url} does not answer like an OpenAI server; check --url", 200
        )
    return answer


def _refusal(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        message = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        message = " ".join(response.text.split())
    key = "; give a key with --api-key or TANDEM_API_KEY" if response.status_code == 401 else ""
    return f"the server answered {response.status_code}: {message[:_MAX_ERROR_CHARS]}{key}"
