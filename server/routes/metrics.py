"""`GET /metrics` for Prometheus, in the text format that it asks for."""

import asyncio
from collections.abc import Iterable
from typing import cast

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from server.dependencies import StateDep
from server.http.turns import in_turns
from server.vllm_metrics import vllm_metrics

router = APIRouter(tags=["operations"])


class _Collected(Collector):
    """The metrics that were read from a registry."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


@router.get("/metrics", response_class=Response)
async def get_metrics(request: Request, state: StateDep) -> Response:
    """Returns the metrics. They are read on the event loop, where numbers change, and written in a
    thread: the page of many models takes a tenth of a second."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    metrics = await in_turns(lambda metric: metric, state.metrics.registry.collect())
    if state.settings.vllm_metrics:
        metrics += vllm_metrics(metrics, state.engine, state.live_requests)
    collected = cast(CollectorRegistry, _Collected(metrics))
    return Response(await asyncio.to_thread(encode, collected), media_type=content_type)
