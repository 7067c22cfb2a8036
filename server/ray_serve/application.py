"""The application that Ray Serve runs: servers, and in front of them what sends requests to them.

client → Ray's proxy → Ingress (reads the body, asks PrefixRouter) → Server (the app) → worker
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from engine.contract.status import Phase
from engine.errors import EngineDead, ModelLoadError
from engine.processes.logs import configure_logging
from server.app import build_routes, create_app
from server.process.serve import create_process_engine
from server.ray_serve.affinity import home_of
from server.ray_serve.call import Head, answer, sent_scope
from server.ray_serve.failure import failed_answer, last_event
from server.ray_serve.load import METRIC, FullnessPolicy, fullness
from server.settings import Settings, load_settings
from server.state import AppState

_LOST = "the server that answered has ended; send the request again"
_POLL_S = 0.1
_LOOK_BACK_S = 4.0
_LOGGING = LoggingConfig(enable_access_log=False)
"""Servers have an access log of their own, `access_log`."""


class Fleet(BaseModel):
    """The arguments of the application, in a Serve config file or from `tandem ray`. All other
    settings of Ray are in its own section `deployments`."""

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any] = Field(default_factory=dict)
    """The settings of every server, under the names that they have in `configs/default.yaml`."""
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    target_fullness: float = Field(0.5, gt=0)
    """Requests at a server's fullest model for each that it runs at a time."""
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)
    num_cpus: float = Field(1.0, ge=0)
    """What Ray reserves for each server; the server's own `num_threads` should match it."""
    num_gpus: float = Field(0.0, ge=0)
    num_ingresses: int = Field(1, ge=1)


class Server:
    """A server without a socket: the app, in Ray's process."""

    async def __init__(self, given: dict[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits it
        settings = load_settings(given)
        configure_logging(settings.log_format, settings.log_level)
        app = create_app(settings, create_process_engine(settings))
        build_routes(app)
        self._app = app
        self._state: AppState = app.state.tandem
        self._home = home_of(serve.get_replica_context().replica_id.unique_id)
        self._running = contextlib.AsyncExitStack()
        await self._running.enter_async_context(app.router.lifespan_context(app))
        while not self._state.lifecycle.readiness(self._state.engine.statuses()).serving:
            await asyncio.sleep(_POLL_S)
            await self.check_health()

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Head | bytes]:
        """Yield the head of the answer to a request, then parts of its body."""
        async with contextlib.aclosing(answer(self._app, scope, body, self._home)) as parts:
            async for part in parts:
                yield part

    async def check_health(self) -> None:
        """Called by Ray, which starts another server in place of one that raises.

        Raises:
            ModelLoadError: no model can be served, and none will be.
        """
        statuses = self._state.engine.statuses()
        readiness = self._state.lifecycle.readiness(statuses)
        if readiness.phase in (Phase.FAILED, Phase.STOPPED):
            causes = (status.failure.message for status in statuses if status.failure is not None)
            raise ModelLoadError("; ".join(causes) or "the models have stopped")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray; what it returns is there for `FullnessPolicy`."""
        return {METRIC: fullness(self._state)}

    async def __del__(self) -> None:
        """Called by Ray once the server has no requests any more."""
        await self._running.aclose()


class Ingress:
    """Takes requests from Ray's proxy and passes them on, because Ray's request routers cannot see
    the body of a request that comes from a proxy."""

    def __init__(self, servers: DeploymentHandle, max_body_bytes: int) -> None:
        self._servers = servers.options(method_name="answer", stream=True)
        self._max_body_bytes = max_body_bytes

    async def __call__(self, request: Request) -> Response:
        body = await self._read(request)
        parts = self._servers.remote(sent_scope(request.scope), body)
        try:
            head = await anext(parts)
        except RayError:
            return failed_answer(request.url.path, EngineDead(_LOST))
        except asyncio.CancelledError:
            parts.cancel()
            raise
        response = StreamingResponse(_rest(parts, request.url.path, head), head.status)
        response.raw_headers = head.headers
        return response

    async def _read(self, request: Request) -> bytes:
        """The body, or so much of a body that is too long that the server will refuse it."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._max_body_bytes:
                break
        return bytes(body)


async def _rest(
    parts: DeploymentResponseGenerator[Any], path: str, head: Head
) -> AsyncIterator[bytes]:
    """What comes after the head; if the server dies, a stream ends with an error event."""
    try:
        async for part in parts:
            yield part
    except RayError:
        end = last_event(path, head, EngineDead(_LOST))
        if end is None:  # the client must see that something is missing
            raise
        yield end
    finally:
        parts.cancel()


def build(fleet: Fleet) -> Application:
    """Make the application."""
    settings: Settings = load_settings(fleet.settings)
    policy = AutoscalingPolicy(
        policy_function=FullnessPolicy, policy_kwargs={"target": fleet.target_fullness}
    )
    servers = serve.deployment(Server).options(
        name="Server",
        ray_actor_options={"num_cpus": fleet.num_cpus, "num_gpus": fleet.num_gpus},
        max_ongoing_requests=settings.max_connections,  # our own admission refuses before
        logging_config=_LOGGING,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        autoscaling_config=AutoscalingConfig(
            min_replicas=fleet.min_replicas,
            max_replicas=fleet.max_replicas,
            upscale_delay_s=fleet.upscale_delay_s,
            downscale_delay_s=fleet.downscale_delay_s,
            look_back_period_s=_LOOK_BACK_S,
            metrics_interval_s=_LOOK_BACK_S / 4,
            policy=policy,
        ),
        request_router_config=RequestRouterConfig(
            request_router_class="server.ray_serve.router:PrefixRouter"
        ),
    )
    ingress = serve.deployment(Ingress).options(
        name="Ingress",
        num_replicas=fleet.num_ingresses,
        max_ongoing_requests=settings.max_connections,
        ray_actor_options={"num_cpus": 0},
        logging_config=_LOGGING,
    )
    return ingress.bind(servers.bind(fleet.settings), settings.max_body_bytes)
