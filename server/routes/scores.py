"""`POST /v1/rerank`, `POST /v1/score` and `POST /v1/groundedness`: compare texts by their
embeddings, or by a reranker."""

from functools import partial

from fastapi import APIRouter, Response

from server.dependencies import ClientDep
from server.embeddings.answers import rerank_answer, score_answer
from server.embeddings.groundedness import Comparison
from server.embeddings.inputs import Inputs
from server.http.json_route import JsonRoute
from server.operations.embed import answer_embeddings
from server.operations.score import answer_scores
from server.protocol.answers import whole_answer
from server.protocol.groundedness import GroundednessAnswer, GroundednessRequest
from server.protocol.scores import RerankAnswer, RerankRequest, ScoreAnswer, ScoreRequest

router = APIRouter(route_class=JsonRoute, tags=["embeddings"])


@router.post(
    "/v1/rerank",
    summary="Sort documents by how well they fit",
    responses=whole_answer(RerankAnswer),
)
@router.post("/rerank", include_in_schema=False)
@router.post("/v2/rerank", include_in_schema=False)
@router.post("/reranking", include_in_schema=False)
@router.post("/v1/reranking", include_in_schema=False)
async def rerank(body: RerankRequest, client: ClientDep) -> Response:
    """Sorts documents by their scores with the query: a reranker's, or the cosine between the
    query's embedding and each document's."""
    field = "documents" if body.texts is None else "texts"
    inputs = Inputs({"query": [body.query], field: body.ranked})
    write = partial(rerank_answer, body)
    return await answer_scores(
        body,
        inputs,
        write,
        client,
        num_first=1,
        keep=body.kept_tokens,
        is_raw=body.use_activation is False or bool(body.raw_scores),
    )


@router.post("/v1/score", summary="Compare texts", responses=whole_answer(ScoreAnswer))
@router.post("/score", include_in_schema=False)
async def score(body: ScoreRequest, client: ClientDep) -> Response:
    """Returns the score of each pair: a reranker's, or the cosine between the embeddings."""
    inputs = Inputs(dict(zip(body.sides, (body.first, body.second), strict=True)))
    return await answer_scores(
        body,
        inputs,
        score_answer,
        client,
        num_first=len(body.first),
        keep=body.truncate_prompt_tokens,
        is_raw=body.use_activation is False,
    )


@router.post(
    "/v1/groundedness",
    summary="Compare an answer with passages",
    responses=whole_answer(GroundednessAnswer),
)
async def groundedness(body: GroundednessRequest, client: ClientDep) -> Response:
    """Finds the sentences of an answer that the passages do not support, or contradict."""
    pool = client.state.encoding_pool
    comparison = await Comparison.of(body, pool)
    write = partial(comparison.written, pool)
    return await answer_embeddings(body, comparison.inputs(), write, client)
