"""The embedding kind: what the server knows of embedding models, besides their routes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from engine.contract.embed import EmbeddingModelInfo
from engine.contract.operations import EMBED
from engine.contract.settings import EngineConfig
from server.http.admission import Places
from server.http.item_metrics import ItemMetrics, ItemNames
from server.http.schemas import integer_items, variant
from server.http.served_kind import FirstQuestion, ServedKind
from server.protocol.embeddings import EmbeddingModelCard, EmbeddingsRequest, PoolingRequest
from server.protocol.groundedness import GroundednessRequest
from server.protocol.prompts import MAX_PROMPTS
from server.protocol.scores import RerankRequest, ScoreRequest
from server.settings import Settings

_METRICS = ItemNames(
    subsystem="embedding",
    items="inputs",
    totals={"num_tokens": "Tokens of all inputs embedded."},
    step_sizes={"step_inputs": "Inputs of a step.", "step_tokens": "Tokens of a step."},
    step_time="step_time_s",
)


def _places(settings: Settings, config: EngineConfig) -> Places:
    return Places(
        what="inputs",
        num_running=config.max_num_seqs,
        num_waiting=settings.max_queued_requests,
    )


def _fill_in(properties: dict[str, Any], infos: Sequence[EmbeddingModelInfo]) -> None:
    if not infos:
        return
    if "dimensions" in properties:
        dimensions = variant(properties["dimensions"], "integer")
        dimensions["maximum"] = max(info.dimensions for info in infos)
    for items in integer_items(properties.get("input", {})):
        items["maximum"] = max(info.vocab_size for info in infos) - 1


def _card(info: EmbeddingModelInfo) -> EmbeddingModelCard:
    return EmbeddingModelCard(
        id=info.model,
        created=info.created,
        max_model_len=info.max_model_len,
        root=info.model,
        architecture=info.architecture,
        dimensions=info.dimensions,
        pooling=info.pooling,
        normalized=info.normalized,
        max_inputs=MAX_PROMPTS,
    )


def _first_question(model: str) -> FirstQuestion:
    return FirstQuestion(
        path="/v1/embeddings", fields={"model": model, "input": "The sky is blue."}
    )


SERVED_EMBEDDINGS = ServedKind(
    kind=EMBED,
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
    places=_places,
    fill_in=_fill_in,
    card=_card,
    metrics=partial(ItemMetrics, EMBED, _METRICS),
    first_question=_first_question,
)
