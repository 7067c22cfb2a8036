"""A text engine whose model also makes embeddings: `EngineWithEmbeddings`.

Embeddings are computed from whole texts with the weights that write text, so nothing is loaded
twice. Their memory is asked for when the first text is embedded. After each step of texts comes one
step of embeddings, so that neither waits for the other's queue.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from engine.contract.adapter_orders import AdapterOrder, Answer
from engine.contract.embed import EmbeddingFacts, EmbeddingRequest
from engine.contract.generate import EngineStats, GenerateRequest, ModelInfo
from engine.contract.host import Host
from engine.contract.request import Event
from engine.contract.resolved_config import MachineFacts, ResolvedConfig
from engine.embedding.embedders import state_bytes
from engine.embedding.work import EmbeddingEngine, EmbeddingLimits, EmbeddingWork
from engine.llm.cache.cache_journal import CacheJournal
from engine.llm.engine import LLMEngine
from engine.models.causal_lm import CausalLM
from engine.models.sentence_decoder import SentenceDecoder
from engine.models.sentence_encoder import Embedder, Pooling

POOLING: Pooling = "last"
MAX_TOKENS = 2048
"""The most tokens of a text, unless a step may have more: a text is computed in one step, and the
tokens of other requests wait for it."""


class EngineWithEmbeddings:
    """An `engine.worker.stepping.SteppingEngine` for both operations of a text model."""

    def __init__(self, texts: LLMEngine, embeddings: EmbeddingEngine) -> None:
        self.texts = texts
        self._embeddings = embeddings
        self._has_embedded = False

    def add(self, request: GenerateRequest | EmbeddingRequest) -> None:
        """Queue a request. Raises RequestError or CapacityError if it cannot be taken."""
        if isinstance(request, EmbeddingRequest):
            self._embeddings.add(request)
            self._has_embedded = True
        else:
            self.texts.add(request)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request, or one of its completions; unknown ones are ignored."""
        self.texts.abort(request_id, index)
        self._embeddings.abort(request_id, index)

    def has_work(self) -> bool:
        return self.texts.has_work() or self._embeddings.has_work()

    def step(self) -> tuple[list[Event], EngineStats]:
        """Step the texts, then the embeddings."""
        events: list[Event] = []
        if self.texts.has_work():
            of_texts, stats = self.texts.step()
            events += of_texts
        else:
            stats = self.texts.stats()
        if self._embeddings.has_work():
            events += self._embeddings.step()[0]
        return events, self._with_embeddings(stats)

    def stats(self) -> EngineStats:
        """The current statistics."""
        return self._with_embeddings(self.texts.stats())

    def _with_embeddings(self, stats: EngineStats) -> EngineStats:
        if not self._has_embedded:  # most text models never do
            return stats
        return replace(stats, embedding=self._embeddings.stats())

    def use_idle_time(self) -> bool:
        """See `engine.worker.stepping.PreparingEngine`."""
        return self.texts.use_idle_time()

    def identify(self, digest: str) -> None:
        """See `engine.worker.stepping.IdentifiedEngine`."""
        self.texts.identify(digest)

    @property
    def cache_journal(self) -> CacheJournal | None:
        """See `engine.worker.stepping.JournalingEngine`."""
        return self.texts.cache_journal

    def reset_prefix_cache(self) -> None:
        """See `engine.worker.stepping.CachingEngine`."""
        self.texts.reset_prefix_cache()

    def load_adapter(self, order: AdapterOrder, answer: Answer) -> None:
        """See `LLMEngine.load_adapter`."""
        self.texts.load_adapter(order, answer)

    def unload_adapter(self, name: str, answer: Answer) -> None:
        """See `LLMEngine.unload_adapter`."""
        self.texts.unload_adapter(name, answer)

    def shutdown(self) -> None:
        """Release the executor's resources."""
        self.texts.shutdown()


class LazyEmbedder:
    """An `Embedder` that is made when it is first used."""

    def __init__(self, make: Callable[[], Embedder]) -> None:
        self._make = make
        self._made: Embedder | None = None

    def embed(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """See `Embedder.embed`.

        Raises:
            InsufficientMemory: there is no memory for it; the next call tries again.
        """
        if self._made is None:
            self._made = self._make()
        return self._made.embed(texts)


def with_embeddings(
    engine: LLMEngine,
    info: ModelInfo,
    model: CausalLM,
    config: ResolvedConfig,
    machine: MachineFacts,
    host: Host,
) -> tuple[EngineWithEmbeddings, ModelInfo]:
    """The engine and its info with embeddings added to them."""
    max_tokens = max(config.max_num_batched_tokens, min(config.max_model_len, MAX_TOKENS))
    max_model_len = min(config.max_model_len, max_tokens)

    def make() -> Embedder:
        num_bytes = state_bytes(model.config, max_tokens, model.options.dtype)
        host.borrow(machine.device, "embeddings", num_bytes, machine.free_memory_bytes)
        return SentenceDecoder(model, POOLING, max_tokens=max_tokens, max_texts=config.max_num_seqs)

    limits = EmbeddingLimits(
        max_model_len=max_model_len,
        vocab_size=info.vocab_size,
        dimensions=model.config.hidden_size,
        normalizes=True,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_queued=config.max_num_queued,
        scheduling_policy=config.scheduling_policy,
    )
    facts = EmbeddingFacts(
        max_model_len=max_model_len,
        dimensions=limits.dimensions,
        pooling=POOLING,
        normalized=limits.normalizes,
    )
    embeddings = EmbeddingEngine(EmbeddingWork(LazyEmbedder(make), limits), limits)
    return EngineWithEmbeddings(engine, embeddings), replace(info, embedding=facts)
