"""`POST /v1/embeddings` and `POST /pooling`."""

from functools import partial

from fastapi import APIRouter, Response

from server.dependencies import ClientDep
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
from server.state import ClientRequest

router = APIRouter(route_class=JsonRoute, tags=["embeddings"])


@router.post("/v1/embeddings", summary="Embed texts", responses=whole_answer(EmbeddingsAnswer))
async def create_embeddings(body: EmbeddingsRequest, client: ClientDep) -> Response:
    """Returns one embedding per input, in the order of the inputs."""
    return await _embed_fields(body, partial(embeddings_answer, body), client)


@router.post("/pooling", summary="Pool texts", responses=whole_answer(PoolingAnswer))
async def create_pooling(body: PoolingRequest, client: ClientDep) -> Response:
    """Returns embeddings in vLLM's form."""
    return await _embed_fields(body, partial(pooling_answer, body), client)


async def _embed_fields(body: EmbeddingFields, write: Write, client: ClientRequest) -> Response:
    return await answer_embeddings(
        body,
        Inputs({"input": body.input}),
        write,
        client,
        dimensions=body.dimensions,
        keep=body.truncate_prompt_tokens,
    )
