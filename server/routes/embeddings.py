"""`POST /v1/embeddings` and `POST /pooling`."""

from functools import partial

from fastapi import APIRouter, Request, Response

from server.dependencies import StateDep
from server.embeddings.answers import embeddings_answer, pooling_answer
from server.embeddings.inputs import Inputs
from server.http.json_route import JsonRoute
from server.operations.embed import Write, answer_embeddings
from server.protocol.answers import whole_answer
from server.protocol.embeddings import (
    EmbeddingFields,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    PoolingAnswer,
    PoolingRequest,
)
from server.state import AppState

router = APIRouter(route_class=JsonRoute, tags=["embeddings"])


@router.post("/v1/embeddings", summary="Embed texts", responses=whole_answer(EmbeddingsAnswer))
async def create_embeddings(body: EmbeddingsRequest, request: Request, state: StateDep) -> Response:
    """Returns one embedding per input, in the order of the inputs."""
    return await _embed_fields(body, partial(embeddings_answer, body), request, state)


@router.post("/pooling", summary="Pool texts", responses=whole_answer(PoolingAnswer))
async def create_pooling(body: PoolingRequest, request: Request, state: StateDep) -> Response:
    """Returns embeddings in vLLM's form."""
    return await _embed_fields(body, partial(pooling_answer, body), request, state)


async def _embed_fields(
    body: EmbeddingFields, write: Write, request: Request, state: AppState
) -> Response:
    return await answer_embeddings(
        body,
        Inputs({"input": body.input}),
        write,
        request,
        state,
        dimensions=body.dimensions,
        keep=body.truncate_prompt_tokens,
    )
