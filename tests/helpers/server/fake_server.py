"""An app over a fake engine and a client that talks to it in memory."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar

import httpx
from fastapi import FastAPI

from server.app import create_app
from server.settings import Settings
from tests.helpers.server.listening import listening


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """A client that talks to an app in memory and raises what the app raises."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (the condition is anybody's state)
            await asyncio.sleep(0.002)


class FakeServer:
    """An app, its engine and a client. The fixture `closed_servers` closes it.

    Attributes:
        metrics: the beginning of the names, and the model, of the metrics that `value` reads.
    """

    made: ClassVar[list["FakeServer"]] = []
    metrics = ("", "")

    def __init__(self, engine: Any, /, **settings: Any) -> None:
        self.engine: Any = engine
        self.settings = Settings(**settings)
        self.engine.config_of_server = self.settings.engine_config
        self.app = create_app(self.settings, self.engine)
        self.state = self.app.state.tandem
        self.client = client_of(self.app)
        self.made.append(self)

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)

    def value(self, name: str, **labels: str) -> float | None:
        """Read a metric of a model."""
        registry = self.state.metrics.registry
        prefix, model = self.metrics
        return registry.get_sample_value(f"{prefix}_{name}", {"model_name": model, **labels})

    def listening(self) -> AbstractAsyncContextManager[str]:
        """Serve on a real port, in this event loop; gives the base URL."""
        return listening(self.app)

    def is_idle(self) -> bool:
        """Whether nothing of any request is left."""
        state = self.state
        return not (
            state.admission.num_in_flight()
            or state.admission.num_requests
            or state.pictures.budget.num_taken
            or state.pictures.between.num_taken
            or state.live_requests.of(None)
        )

    async def aclose(self) -> None:
        """Let the requests end, of which nothing may be left, and the processes of chat templates,
        as no lifespan ends them."""
        self.engine.release()
        await until(self.is_idle)
        assert not self.engine.live
        await self.state.texts.aclose()
        await self.client.aclose()


def answer_of(response: httpx.Response) -> Any:
    """The JSON of a request that was answered."""
    assert response.status_code == 200, response.text
    return response.json()


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """Return the error of a refused request, which must have the usual shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def assert_refused(
    response: httpx.Response, param: str | None, *said: str, status: int = 400
) -> dict[str, Any]:
    """Check that a request was refused because of a field, and what the message says.

    Returns:
        The error.
    """
    error = error_of(response, status)
    assert error["param"] == param
    for words in said:
        assert words in error["message"]
    return error
