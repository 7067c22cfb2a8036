"""Writes embeddings as the JSON of each route; others get their turn while a long answer is
written."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from engine.contract.embed import EmbeddingEvent
from server.embeddings.convert import Embedded, as_numbers, in_base64
from server.embeddings.scores import Scored
from server.http.turns import in_turns
from server.protocol.embeddings import (
    Embedding,
    EmbeddingFields,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    EmbeddingUsage,
    Pooled,
    PoolingAnswer,
    PoolingRequest,
)
from server.protocol.scores import (
    Document,
    Ranked,
    RankedText,
    RerankAnswer,
    RerankRequest,
    Score,
    ScoreAnswer,
)


async def embeddings_answer(body: EmbeddingsRequest, embedded: Embedded) -> bytes:
    """The answer of `/v1/embeddings`."""
    data = await _entries(
        body, embedded, lambda index, written: Embedding(index=index, embedding=written)
    )
    model, usage = embedded.request.model, _usage(embedded)
    return msgspec.json.encode(
        EmbeddingsAnswer(data=data, model=model, pooling=embedded.pooling, usage=usage)
    )


async def pooling_answer(body: PoolingRequest, embedded: Embedded) -> bytes:
    """The answer of `/pooling`."""
    answer = PoolingAnswer(
        id=embedded.request.request_id,
        created=int(time.time()),
        model=embedded.request.model,
        data=await _entries(
            body, embedded, lambda index, written: Pooled(index=index, data=written)
        ),
        usage=_usage(embedded),
    )
    return msgspec.json.encode(answer)


async def score_answer(scored: Scored) -> bytes:
    """The answer of `/v1/score`."""
    answer = ScoreAnswer(
        id=scored.request_id,
        created=int(time.time()),
        model=scored.model,
        data=[Score(index=index, score=score) for index, score in enumerate(scored.scores)],
        usage=_usage(scored),
    )
    return msgspec.json.encode(answer)


async def rerank_answer(body: RerankRequest, scored: Scored) -> bytes:
    """The answer of `/v1/rerank`. The best documents are first, equal ones in their order."""
    scores = scored.scores
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    best = order[: body.top_n or None]
    if body.texts is not None:
        texts = body.texts if body.return_text else [None] * len(scores)
        return msgspec.json.encode(
            [RankedText(index=index, score=scores[index], text=texts[index]) for index in best]
        )
    with_text = body.return_documents is not False
    answer = RerankAnswer(
        id=scored.request_id,
        model=scored.model,
        usage=_usage(scored),
        results=[
            Ranked(
                index=index,
                document=Document(body.ranked[index]) if with_text else None,
                relevance_score=scores[index],
            )
            for index in best
        ],
    )
    return msgspec.json.encode(answer)


async def plain_embeddings(embedded: Embedded) -> list[msgspec.Raw]:
    """Embeddings as JSON arrays of numbers."""
    return await in_turns(
        lambda event: msgspec.Raw(msgspec.json.encode(as_numbers(event.embedding))),
        embedded.events,
    )


async def _entries(
    body: EmbeddingFields, embedded: Embedded, entry: Callable[[int, list[float] | str], Any]
) -> list[Any]:
    """One JSON entry per embedding, with its numbers in the requested encoding."""

    def encoded(numbered: tuple[int, EmbeddingEvent]) -> msgspec.Raw:
        index, numbers = numbered[0], numbered[1].embedding
        written = in_base64(numbers) if body.encoding_format == "base64" else as_numbers(numbers)
        return msgspec.Raw(msgspec.json.encode(entry(index, written)))

    return await in_turns(encoded, enumerate(embedded.events))


def _usage(answered: Embedded | Scored) -> EmbeddingUsage:
    return EmbeddingUsage(answered.num_tokens, answered.num_tokens)
