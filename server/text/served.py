"""The text kind: what the server knows of text models, besides their routes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from engine.contract.generate import ModelInfo
from engine.contract.operations import GENERATE
from server.http.schemas import integer_items, variant
from server.http.served_operation import (
    FirstQuestion,
    ServedOperation,
    card_of,
    parent_of,
    sequence_places,
)
from server.protocol.chat import ChatCompletionRequest
from server.protocol.completions import CompletionRequest
from server.protocol.models import ModelCard
from server.protocol.responses import ResponseRequest
from server.protocol.tokenize import DetokenizeRequest, TokenizeRequest
from server.text.metrics import TextMetrics

_TOKEN_COUNTS = (
    "max_tokens",
    "max_completion_tokens",
    "n_predict",
    "min_tokens",
    "max_output_tokens",
)


def _fill_in(properties: dict[str, Any], infos: Sequence[ModelInfo]) -> None:
    if not infos:
        return
    for name in _TOKEN_COUNTS:
        if name in properties:
            count = variant(properties[name], "integer")
            count["maximum"] = max(info.max_model_len for info in infos) - 1
    last_token = max(info.vocab_size for info in infos) - 1
    for name in ("prompt", "tokens", "stop_token_ids"):
        for items in integer_items(properties.get(name, {})):
            items["maximum"] = last_token


def _card(info: ModelInfo) -> ModelCard:
    return card_of(
        ModelCard,
        info,
        parent=parent_of(info),
        input_modalities=["text"] if info.pictures is None else ["text", "image"],
    )


def _first_question(model: str) -> FirstQuestion:
    question = "Write one sentence about the sea."
    messages = [{"role": "user", "content": question}]
    return FirstQuestion(
        words=("chat", question),
        path="/v1/chat/completions",
        fields={"model": model, "messages": messages, "max_tokens": 64},
    )


SERVED_TEXT = ServedOperation(
    operation=GENERATE,
    deed="writes text",
    routes="/v1/chat/completions or /v1/completions",
    routers=(
        "server.routes.chat:router",
        "server.routes.completions:router",
        "server.routes.responses:router",
        "server.routes.responses:bare_router",
        "server.routes.conversations:router",
        "server.routes.tokenize:router",
    ),
    nothing_served="no text model is served here; start the server with one, such as --model tiny",
    bodies=(
        ChatCompletionRequest,
        CompletionRequest,
        ResponseRequest,
        TokenizeRequest,
        DetokenizeRequest,
    ),
    places=partial(sequence_places, "sequences"),
    fill_in=_fill_in,
    card=_card,
    metrics=TextMetrics,
    first_question=_first_question,
)
