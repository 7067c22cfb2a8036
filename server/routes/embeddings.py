"""`POST /v1/embeddings` and `POST /pooling`, and the embedding of texts for other routes."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from engine.contract.kinds import EMBEDDING
from server.catalog import config_of, find_of_kind
from server.embeddings.answers import embeddings_answer, pooling_answer
from server.embeddings.convert import Embedded, check_inputs, embedding_request, token_ids
from server.embeddings.inputs import Inputs
from server.embeddings.kind import SERVED_EMBEDDINGS
from server.http.item_run import ItemRun
from server.http.json_route import JsonRoute
from server.http.log_fields import annotate
from server.http.priority import acting_priority
from server.http.sse import until_disconnect
from server.protocol.answers import error_answers
from server.protocol.common import RequestBody
from server.protocol.embeddings import (
    EmbeddingFields,
    EmbeddingModelRequest,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    PoolingAnswer,
    PoolingRequest,
)
from server.routes.deps import StateDep
from server.routes.ignored_fields import report_ignored_fields
from server.state import AppState

router = APIRouter(route_class=JsonRoute, tags=["embeddings"])

Write = Callable[[Embedded], Awaitable[bytes]]
"""Writes the answer's JSON."""


def answers_with(model: type) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for a route that has texts embedded."""
    return {200: {"model": model}, **error_answers()}


@router.post("/v1/embeddings", summary="Embed texts", responses=answers_with(EmbeddingsAnswer))
async def create_embeddings(body: EmbeddingsRequest, request: Request, state: StateDep) -> Response:
    """Returns one embedding per input, in the order of the inputs."""
    return await _embed_fields(body, partial(embeddings_answer, body), request, state)


@router.post("/pooling", summary="Pool texts", responses=answers_with(PoolingAnswer))
async def create_pooling(body: PoolingRequest, request: Request, state: StateDep) -> Response:
    """Returns embeddings in vLLM's form."""
    return await _embed_fields(body, partial(pooling_answer, body), request, state)


async def _embed_fields(
    body: EmbeddingFields, write: Write, request: Request, state: AppState
) -> Response:
    return await embed(
        body,
        Inputs({"input": body.input}),
        write,
        request,
        state,
        dimensions=body.dimensions,
        keep=body.truncate_prompt_tokens,
    )


async def embed(
    body: EmbeddingModelRequest,
    inputs: Inputs,
    write: Write,
    request: Request,
    state: AppState,
    *,
    sent: RequestBody | None = None,
    dimensions: int | None = None,
    keep: int | None = None,
) -> Response:
    """Admit the inputs, have them embedded, and answer with what `write` makes of the embeddings.

    Args:
        sent: what the client sent, if `body` was made from it.
        keep: tokens to keep of each text, as in `truncate_prompt_tokens`.

    Raises:
        EngineError: the request is refused or fails.
    """
    headers = report_ignored_fields(request, sent or body)
    info = find_of_kind(state.engine, EMBEDDING, body.model)
    annotate(request, model=info.model, num_inputs=inputs.num_inputs)
    if state.settings.log_prompts:
        annotate(request, prompts=list(inputs))
    priority = acting_priority(body.priority, config_of(state.engine, info.model))
    check_inputs(inputs, info, dimensions, keep)
    lease = state.admission.admit(EMBEDDING, info.model, inputs.num_inputs)
    meter = state.metrics.of(SERVED_EMBEDDINGS).meter(info.model)
    async with ItemRun(state.engine, meter, lease) as run:

        async def work() -> bytes:
            text = await state.texts.get(info)
            ids_of = await token_ids(inputs, info, text, keep)
            asked = embedding_request(ids_of, info, dimensions=dimensions, priority=priority)
            return await write(Embedded(asked, await run.answers(asked)))

        data = await until_disconnect(request.receive, work())
    return Response(data, media_type="application/json", headers=headers)
