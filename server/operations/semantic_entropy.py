"""Compares a chat's answers by meaning, once they are written."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial

from engine.contract.embed import EmbeddingModelInfo
from engine.contract.operations import EMBED
from engine.errors import EngineError, InvalidParameter, RequestAborted, RequestError
from server.catalog import names_made_for
from server.embeddings.convert import embedding_request, token_ids
from server.embeddings.inputs import Inputs
from server.embeddings.semantic_entropy import clusters_of, entropy_of
from server.embeddings.served import SERVED_EMBEDDINGS
from server.operations.exchange import run_with
from server.protocol.answers import SemanticEntropy
from server.protocol.chat import ChatCompletionRequest
from server.state import AppState

PATIENCE_S = 30.0
"""Seconds that written answers wait for a place at the embedding model."""
_ALL_THAT_FIT = -1
"""Value of `keep` for as many tokens of an answer as the model takes; later ones are left out."""

Judge = Callable[[Sequence[str]], Awaitable[SemanticEntropy]]
"""Computes the entropy of the answers' texts."""


async def semantic_judge(body: ChatCompletionRequest, state: AppState) -> Judge | None:
    """A function that compares the answers; None if the request does not ask for it.

    Raises:
        InvalidParameter: no embedding model serves, or it is not clear which one is meant.
        ModelNotReady, ModelUnloading: the embedding model does not serve now.
    """
    if not body.semantic_entropy:
        return None
    info, threshold = await _find(body, state), body.meaning_threshold

    async def judge(texts: Sequence[str]) -> SemanticEntropy:
        distinct = [text for text in dict.fromkeys(texts) if text]
        try:
            embeddings = await _embeddings(distinct, info, state)
        except RequestAborted:
            raise
        except EngineError as error:
            # The answers are there, and cost more than comparing them.
            return SemanticEntropy(
                entropy=None,
                num_clusters=None,
                clusters=None,
                threshold=threshold,
                embedding_model=info.model,
                error=error.message,
            )
        known = dict(zip(distinct, embeddings, strict=True))
        # A hundred texts make five thousand pairs.
        clusters = await state.encoding_pool.run(partial(clusters_of, texts, known, threshold))
        return SemanticEntropy(
            entropy=entropy_of(clusters),
            num_clusters=max(clusters) + 1,
            clusters=clusters,
            threshold=threshold,
            embedding_model=info.model,
        )

    return judge


async def _find(body: ChatCompletionRequest, state: AppState) -> EmbeddingModelInfo:
    try:
        if not body.embedding_model and not names_made_for(state.engine, EMBED):
            # A text model would do only if it is asked for: its embeddings compare less well.
            raise InvalidParameter(SERVED_EMBEDDINGS.nothing_served)
        return await state.first_use.find(EMBED, body.embedding_model)
    except RequestError as error:
        raise InvalidParameter(
            f"semantic_entropy needs an embedding model to compare answers: {error.message}",
            param="embedding_model",
        ) from error


async def _embeddings(
    texts: Sequence[str], info: EmbeddingModelInfo, state: AppState
) -> list[bytes]:
    if not texts:
        return []
    lease = await state.admission.admit_later(EMBED, info.model, len(texts), PATIENCE_S)
    made = run_with(state, SERVED_EMBEDDINGS, info, "embd", lease, len(texts))
    async with aclosing(made) as run:
        text = await state.texts.get(info)
        ids_of = await token_ids(Inputs({"answers": texts}), info, text, _ALL_THAT_FIT)
        asked = embedding_request(run.id, ids_of, info)
        return [event.embedding for event in await run.answers(asked)]
