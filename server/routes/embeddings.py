"""`POST /v1/embeddings`."""

from typing import Any

from fastapi import APIRouter, Request, Response

from engine.embedding_types import EmbeddingModelInfo
from engine.kinds import EMBEDDING
from server.catalog import config_of, find_of_kind
from server.embeddings.convert import answer, check_body, embedding_request, token_ids
from server.embeddings.kind import SERVED_EMBEDDINGS
from server.http.item_run import ItemRun
from server.http.json_route import JsonRoute
from server.http.log_fields import annotate
from server.http.priority import acting_priority
from server.http.sse import until_disconnect
from server.protocol.answers import error_answers
from server.protocol.embeddings import EmbeddingsAnswer, EmbeddingsRequest
from server.routes.deps import StateDep
from server.routes.ignored_fields import report_ignored_fields
from server.state import AppState

router = APIRouter(route_class=JsonRoute, tags=["embeddings"])

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": EmbeddingsAnswer},
    **error_answers(),
}


@router.post("/v1/embeddings", summary="Embed texts", responses=_RESPONSES)
async def create_embeddings(body: EmbeddingsRequest, request: Request, state: StateDep) -> Response:
    """One embedding per input, in their order."""
    headers = report_ignored_fields(request, body)
    info = find_of_kind(state.engine, EMBEDDING, body.model)
    annotate(request, model=info.model, num_inputs=len(body.input))
    if state.settings.log_prompts:
        annotate(request, prompts=body.input)
    priority = acting_priority(body.priority, config_of(state.engine, info.model))
    check_body(body, info)
    lease = state.admission.admit(EMBEDDING, info.model, len(body.input))
    meter = state.metrics.of(SERVED_EMBEDDINGS).meter(info.model)
    async with ItemRun(state.engine, meter, lease) as run:
        data = await until_disconnect(request.receive, _embed(body, info, priority, run, state))
    return Response(data, media_type="application/json", headers=headers)


async def _embed(
    body: EmbeddingsRequest,
    info: EmbeddingModelInfo,
    priority: int,
    run: ItemRun,
    state: AppState,
) -> bytes:
    text = await state.texts.get(info)
    inputs = await token_ids(body, info, text)
    asked = embedding_request(body, info, inputs, priority=priority)
    return await answer(body, asked, await run.answers(asked))
