"""Scoring pairs of texts, by a reranker or by embeddings."""

import math
import time
from collections.abc import Awaitable, Callable

from fastapi import Response

from engine.contract.operations import SCORE
from engine.contract.score import PairsRequest, RerankerInfo
from engine.errors import UnsupportedFeature
from server.catalog import is_meant
from server.embeddings.convert import Embedded, check_inputs
from server.embeddings.inputs import Inputs
from server.embeddings.pairs import pair_ids
from server.embeddings.scores import Scored, cosines
from server.embeddings.served import SERVED_RERANKERS
from server.http.log_fields import annotate
from server.operations.embed import answer_embeddings
from server.operations.exchange import Exchange, item_run
from server.protocol.scores import RERANKER_FIELDS, PairRequest
from server.state import ClientRequest

Write = Callable[[Scored], Awaitable[bytes]]
"""Writes the answer's JSON."""


async def answer_scores(
    body: PairRequest,
    inputs: Inputs,
    write: Write,
    client: ClientRequest,
    *,
    num_first: int,
    keep: int | None,
    is_raw: bool,
) -> Response:
    """Have pairs of texts scored, and answer with what `write` makes of the scores.

    A reranker reads both texts of a pair at once. Other models embed each text, and the score is a
    cosine.

    Args:
        num_first: how many of the inputs are first texts, which `pair_indices` pairs with others.
        keep: tokens to keep of each pair, or of each text that is embedded.
        is_raw: whether the scores are a reranker's numbers without its activation.

    Raises:
        EngineError: the request is refused or fails.
    """
    if not is_meant(client.state.engine, SCORE, body.model):
        _check_plain(body)

        async def compare(embedded: Embedded) -> bytes:
            return await write(await cosines(embedded, num_first))

        return await answer_embeddings(body, inputs, compare, client, keep=keep)
    exchange = await Exchange.begin(SERVED_RERANKERS, body, client)
    info = exchange.info
    num_pairs = inputs.num_inputs - num_first
    annotate(client.request, num_inputs=num_pairs)
    exchange.log_prompts(prompts=list(inputs))
    if body.instruction and not info.has_prompt:
        raise _not_read("instruction", info.model)
    check_inputs(inputs, info, keep)
    run = item_run(exchange, body.id_prefix, num_pairs)

    async def work() -> bytes:
        text = await client.state.texts.get(info)
        pairs = await pair_ids(inputs, num_first, info, text, keep, body.instruction)
        asked = PairsRequest(
            request_id=run.id,
            model=info.model,
            inputs=[ids for ids, _ in pairs],
            first_lengths=[length for _, length in pairs],
            priority=exchange.priority,
            arrival_time_s=time.time(),
        )
        numbers = [event.score for event in await run.answers(asked)]
        scores = numbers if is_raw else [_activated(number, info) for number in numbers]
        num_tokens = sum(map(len, asked.inputs))
        return await write(Scored(run.id, info.model, scores, num_tokens))

    return await exchange.answer(run, work())


def _check_plain(body: PairRequest) -> None:
    """Refuse the fields that only rerankers read."""
    for field in RERANKER_FIELDS:
        if getattr(body, field) not in (None, ""):
            raise _not_read(field, "embedding models")


def _not_read(field: str, model: str) -> UnsupportedFeature:
    return UnsupportedFeature(f"{field} is not supported by {model}; leave it out", param=field)


def _activated(number: float, info: RerankerInfo) -> float:
    if info.activation == "none":
        return number
    # The exponential of a large number would overflow.
    small = math.exp(-abs(number))
    return (1.0 if number >= 0 else small) / (1.0 + small)
