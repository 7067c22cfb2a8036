"""The embedding and reranker kinds: what the server knows of their models, besides their routes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from engine.contract.embed import EmbeddingModelInfo
from engine.contract.operations import EMBED, SCORE
from engine.contract.score import RerankerInfo
from server.http.item_metrics import ItemMetrics, ItemNames
from server.http.schemas import integer_items, variant
from server.http.served_operation import FirstQuestion, ServedOperation, card_of, sequence_places
from server.protocol.embeddings import EmbeddingModelCard, EmbeddingsRequest, PoolingRequest
from server.protocol.groundedness import GroundednessRequest
from server.protocol.prompts import MAX_PROMPTS
from server.protocol.scores import RERANKER_FIELDS, RerankerCard, RerankRequest, ScoreRequest


def _metrics(subsystem: str, done: str) -> ItemNames:
    return ItemNames(
        subsystem=subsystem,
        items="inputs",
        totals={"num_tokens": f"Tokens of all inputs {done}."},
        step_sizes={"step_inputs": "Inputs of a step.", "step_tokens": "Tokens of a step."},
    )


def _fill_in(properties: dict[str, Any], infos: Sequence[EmbeddingModelInfo]) -> None:
    if not infos:
        return
    if "dimensions" in properties:
        dimensions = variant(properties["dimensions"], "integer")
        dimensions["maximum"] = max(info.dimensions for info in infos)
    for items in integer_items(properties.get("input", {})):
        items["maximum"] = max(info.vocab_size for info in infos) - 1


def _fill_in_rerankers(properties: dict[str, Any], infos: Sequence[RerankerInfo]) -> None:
    """Leave out the fields that no served model reads."""
    for name in RERANKER_FIELDS:
        if not any(info.has_prompt or name != "instruction" for info in infos):
            properties.pop(name, None)


def _card(info: EmbeddingModelInfo) -> EmbeddingModelCard:
    return card_of(EmbeddingModelCard, info, max_inputs=MAX_PROMPTS)


def _reranker_card(info: RerankerInfo) -> RerankerCard:
    return card_of(RerankerCard, info, max_inputs=MAX_PROMPTS)


def _first_question(model: str) -> FirstQuestion:
    return FirstQuestion(
        path="/v1/embeddings", fields={"model": model, "input": "The sky is blue."}
    )


SERVED_EMBEDDINGS = ServedOperation(
    operation=EMBED,
    deed="makes embeddings",
    routes="/v1/embeddings, /v1/rerank or /v1/score",
    routers=("server.routes.embeddings:router", "server.routes.scores:router"),
    nothing_served="no embedding model is served here; start the server with one, such as "
    "--model all-minilm-l6-v2, or a text model with kind embedding in its settings",
    bodies=(
        EmbeddingsRequest,
        PoolingRequest,
        RerankRequest,
        ScoreRequest,
        GroundednessRequest,
    ),
    places=partial(sequence_places, "inputs"),
    fill_in=_fill_in,
    card=_card,
    metrics=partial(ItemMetrics, EMBED, _metrics("embedding", "embedded")),
    first_question=_first_question,
)
SERVED_RERANKERS = ServedOperation(
    operation=SCORE,
    deed="scores pairs of texts",
    routes="/v1/rerank or /v1/score",
    routers=(),  # those of embedding models, which score by cosines
    nothing_served="no reranker is served here; start the server with one, such as --model "
    "./bge-reranker-v2-m3",
    bodies=(RerankRequest, ScoreRequest),
    places=partial(sequence_places, "inputs"),
    fill_in=_fill_in_rerankers,
    card=_reranker_card,
    metrics=partial(ItemMetrics, SCORE, _metrics("reranker", "scored")),
    first_question=lambda model: FirstQuestion(
        path="/v1/rerank",
        fields={
            "model": model,
            "query": "What is the capital of France?",
            "documents": ["Berlin is a city.", "Paris is the capital of France."],
        },
    ),
)
