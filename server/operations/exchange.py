"""A client's request to one model: what every operation does before and after its own work."""

from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

from fastapi import Request, Response

from engine.contract.request import InfoT
from engine.contract.settings import EngineConfig
from server.catalog import config_of
from server.http.admission import Lease
from server.http.engine_run import EngineRun, new_id
from server.http.item_metrics import ItemMetrics
from server.http.item_run import ItemRun
from server.http.log_fields import annotate
from server.http.priority import acting_priority
from server.http.reply import LaterReply, Reply
from server.http.request_trace import current_trace
from server.http.served_operation import MetricsT, ServedOperation
from server.http.shape import Shape
from server.http.sse import until_disconnect
from server.operations.ignored_fields import Sent, report_ignored_fields
from server.state import AppState, ClientRequest

RunT = TypeVar("RunT", bound=EngineRun)


class Asking(Sent, Protocol):
    """The fields that every body for a model has."""

    @property
    def model(self) -> str | None: ...

    @property
    def priority(self) -> int | None: ...

    @property
    def ttl(self) -> float | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange(Generic[InfoT, MetricsT]):
    """A request whose model is found.

    Attributes:
        priority: the priority of the engine's request.
        headers: the answer's headers; more may be added until it is sent.
        shape: form of the reply. Default: OpenAI's.
        streams: answer with a stream.
    """

    request: Request
    state: AppState
    served: ServedOperation[InfoT, MetricsT]
    info: InfoT
    config: EngineConfig
    priority: int
    headers: dict[str, str]
    shape: Shape | None
    streams: bool

    @classmethod
    async def begin(
        cls,
        served: ServedOperation[InfoT, MetricsT],
        body: Asking,
        client: ClientRequest,
        info: InfoT | None = None,
    ) -> Self:
        """Find the model, which may be loaded first, and report ignored fields.

        Args:
            info: the model, if it is known already.

        Raises:
            EngineError: there is no such model, or it does not use the priority.
        """
        request, state = client.request, client.state
        headers = report_ignored_fields(request, client.sent or body)
        if info is None:
            info = await client.find(served.operation, body.model)
        if body.ttl is not None and client.may_manage:
            state.engine.keep_alive(info.model, body.ttl)
        streams = bool(getattr(body, "stream", None))
        annotate(request, model=info.name, stream=streams)
        config = config_of(state.engine, info.model)
        return cls(
            request=request,
            state=state,
            served=served,
            info=info,
            config=config,
            priority=acting_priority(body.priority, config),
            headers=headers,
            shape=client.shape,
            streams=streams,
        )

    @property
    def metrics(self) -> MetricsT:
        """The metrics of the model's kind."""
        return self.state.metrics.of(self.served)

    @property
    def share(self) -> int:
        """The most places that the request should take if its further parts can wait."""
        return self.state.admission.share(self.served.operation, self.info.model)

    def log_prompts(self, **fields: Any) -> None:
        """Add fields that hold prompts, if the operator asked for them."""
        if self.state.settings.log_prompts:
            annotate(self.request, **fields)

    def name(self, run: EngineRun, num_images: int = 1) -> None:
        """Name a run for images in the answer's headers and in the access log."""
        self.headers["X-Image-Id"] = run.id
        annotate(self.request, image_id=run.id, num_images=num_images)

    def admit(self, num_places: int, create: Callable[[Lease], RunT]) -> RunT:
        """The run of the request, which holds that many places, is listed, and can be cancelled.

        Raises:
            Draining, QueueFull: the request must be sent again later.
        """
        lease = self.state.admission.admit(self.served.operation, self.info.model, num_places)
        run = create(lease)
        current_trace().id = run.id
        self.state.live_requests.add(
            run, self.request, operation=self.served.operation, model=self.info.name
        )
        return run

    async def reply(
        self, run: EngineRun, prepare: Callable[[], Coroutine[Any, Any, Reply]]
    ) -> Response:
        """Answer with the reply that `prepare` makes once the engine has the request."""
        return await self.send(LaterReply(run, prepare, self.shape))

    async def send(self, reply: Reply) -> Response:
        """Answer with a reply, whole or as a stream.

        Raises:
            EngineError: the request failed before the first byte.
        """
        return await reply.send(
            self.request,
            stream=self.streams,
            heartbeat_s=self.state.settings.heartbeat_interval_s,
            headers=self.headers,
        )

    async def answer(self, run: EngineRun, work: Coroutine[Any, Any, bytes]) -> Response:
        """Answer with the JSON that `work` returns, and close the run.

        Raises:
            EngineError: the work failed, the request was cancelled, or the client left.
        """
        async with aclosing(run):
            data = await until_disconnect(self.request.receive, run.perform(work))
        return Response(data, media_type="application/json", headers=self.headers)


def item_run(
    exchange: Exchange[Any, ItemMetrics],
    prefix: str,
    num_items: int = 1,
    fraction_of: Callable[[Any], float] | None = None,
) -> ItemRun[Any]:
    """The run of a request for items of a kind that `ItemMetrics` measures, which take turns.

    Args:
        prefix: the beginning of its id.
        fraction_of: as for `ItemRun`.

    Raises:
        Draining, QueueFull: as for `Exchange.admit`.
    """

    create = partial(
        run_with,
        exchange.state,
        exchange.served,
        exchange.info,
        prefix,
        num_items=num_items,
        fraction_of=fraction_of,
    )
    return exchange.admit(min(num_items, exchange.share), create)


def run_with(
    state: AppState,
    served: ServedOperation[InfoT, ItemMetrics],
    info: InfoT,
    prefix: str,
    lease: Lease,
    num_items: int = 1,
    fraction_of: Callable[[Any], float] | None = None,
) -> ItemRun[Any]:
    """A run that holds a lease at a model, for a request or for one stage of it."""
    meter = state.metrics.of(served).meter(info.model)
    return ItemRun(new_id(prefix), state.engine, meter, lease, num_items, fraction_of)
