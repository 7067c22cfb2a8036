"""Embedding texts, for every route that answers from embeddings."""

from collections.abc import Awaitable, Callable

from fastapi import Response

from engine.contract.embed import check_dimensions
from server.embeddings.convert import Embedded, check_inputs, embedding_request, token_ids
from server.embeddings.inputs import Inputs
from server.embeddings.served import SERVED_EMBEDDINGS
from server.http.log_fields import annotate
from server.operations.exchange import Exchange, item_run
from server.protocol.embeddings import EmbeddingModelRequest
from server.state import ClientRequest

Write = Callable[[Embedded], Awaitable[bytes]]
"""Writes the answer's JSON."""


async def answer_embeddings(
    body: EmbeddingModelRequest,
    inputs: Inputs,
    write: Write,
    client: ClientRequest,
    *,
    dimensions: int | None = None,
    keep: int | None = None,
) -> Response:
    """Have the inputs embedded, and answer with what `write` makes of the embeddings.

    Args:
        keep: tokens to keep of each text, as in `truncate_prompt_tokens`.

    Raises:
        EngineError: the request is refused or fails.
    """
    exchange = await Exchange.begin(SERVED_EMBEDDINGS, body, client)
    info = exchange.info
    annotate(client.request, num_inputs=inputs.num_inputs)
    exchange.log_prompts(prompts=list(inputs))
    check_dimensions(dimensions, info.dimensions, info.model)
    check_inputs(inputs, info, keep)
    run = item_run(exchange, body.id_prefix, inputs.num_inputs)

    async def work() -> bytes:
        ids_of = await token_ids(inputs, info, await exchange.state.texts.get(info), keep)
        asked = embedding_request(run.id, ids_of, info, dimensions, exchange.priority)
        return await write(Embedded(asked, await run.answers(asked), info.pooling))

    return await exchange.answer(run, work())
