"""`GET /metrics` for Prometheus, in whichever text format it asks for."""

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from server.routes.deps import StateDep

router = APIRouter(tags=["operations"])


@router.get("/metrics", response_class=Response)
async def get_metrics(request: Request, state: StateDep) -> Response:
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(state.metrics.registry), media_type=content_type)
