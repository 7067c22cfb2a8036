"""Embeds and scores pairs for `fake_engine`.

An embedding or a score is a pure function of the token ids, so that answers can be compared.
"""

import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from engine.contract.embed import EmbeddingEvent, EmbeddingModelInfo, EmbeddingRequest
from engine.contract.operations import operation_of
from engine.contract.rejection import rejection
from engine.contract.request import Event, FinishReason
from engine.contract.score import PairEvent, RerankerInfo
from engine.contract.whole_texts import WholeTextsRequest
from tests.helpers.server.fake_failure import Failure

DIMENSIONS = 8


def embedding_info(model: str = "embedder", **changes: object) -> EmbeddingModelInfo:
    """Make the facts of a small ready embedding model; `changes` replaces fields."""
    info = EmbeddingModelInfo(
        model=model,
        path="/nonexistent",
        architecture="BertModel",
        dtype="float32",
        created=1_700_000_000,
        max_model_len=64,
        vocab_size=420,
        dimensions=DIMENSIONS,
        pooling="mean",
        normalized=True,
    )
    return replace(info, **changes)  # type: ignore[arg-type]


def reranker_info(model: str = "ranker", **changes: object) -> RerankerInfo:
    """Make the facts of a small ready reranker; `changes` replaces fields."""
    info = RerankerInfo(
        model=model,
        path="/nonexistent",
        architecture="BertForSequenceClassification",
        dtype="float32",
        created=1_700_000_000,
        max_model_len=64,
        vocab_size=420,
        activation="sigmoid",
        has_prompt=False,
    )
    return replace(info, **changes)  # type: ignore[arg-type]


def vector(token_ids: Sequence[int], dimensions: int | None = None) -> list[float]:
    """Make an embedding of numbers that 32 bits hold exactly."""
    numbers = [(sum(token_ids) * (i + 3) % 97) / 64 - len(token_ids) for i in range(DIMENSIONS)]
    return numbers[:dimensions]


async def embed(
    engine: Any, request: WholeTextsRequest[Any], failure: Failure | None
) -> AsyncIterator[Event]:
    # Backwards: inputs may end in any order.
    for index in reversed(range(len(request.inputs))):
        await engine.may_write.wait()
        if failure is not None and index == 0:
            [event] = rejection(request, failure.value().error(), [index])
            yield event
        else:
            yield replace(
                _computed(request, index),
                queue_time_s=0.25 if index == 0 else None,
                finish_reason=FinishReason.STOP,
            )
    before = engine.stats(request.model)
    num_tokens = sum(map(len, request.inputs))
    stats = operation_of(request).stats(
        num_steps=1 if before is None else before.num_steps + 1,
        num_tokens=num_tokens,
        step_inputs=len(request.inputs),
        step_tokens=num_tokens,
        step_time_s=0.5,
    )
    engine.publish(request.model, stats)


def _computed(request: WholeTextsRequest[Any], index: int) -> EmbeddingEvent | PairEvent:
    ids, name = request.inputs[index], request.request_id
    if not isinstance(request, EmbeddingRequest):
        return PairEvent(request_id=name, index=index, score=vector(ids)[0])
    numbers = vector(ids, request.dimensions)
    packed = struct.pack(f"<{len(numbers)}f", *numbers)
    return EmbeddingEvent(request_id=name, index=index, embedding=packed)
