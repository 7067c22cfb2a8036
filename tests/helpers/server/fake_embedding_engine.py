"""A fake engine that embeds and scores pairs: such models beside `fake_engine`'s text models.

An embedding or a score is a pure function of the token ids, so that answers can be compared.
"""

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from engine.contract.embed import EmbeddingEvent, EmbeddingModelInfo, EmbeddingRequest
from engine.contract.generate import ModelInfo
from engine.contract.kinds import kind_of
from engine.contract.operations import operation_of
from engine.contract.rejection import rejection
from engine.contract.request import FinishReason
from engine.contract.score import PairEvent, RerankerInfo
from engine.contract.status import ModelStatus, Phase
from engine.contract.whole_texts import WholeTextsInfo, WholeTextsRequest
from engine.errors import EngineDead
from engine.worker.request_stream import RequestStream
from tests.helpers.server.fake_engine import Failure, FakeEngineClient

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


class FakeEmbeddingEngine(FakeEngineClient):
    """A fake engine with text models as before, embedding models and rerankers.

    Attributes:
        embedding_requests: the requests so far.
        open: streams not yet ended, by request id.
    """

    def __init__(self, *infos: WholeTextsInfo | ModelInfo) -> None:
        texts: list[ModelInfo | str] = [info for info in infos if isinstance(info, ModelInfo)]
        super().__init__(*texts or ["unused"])
        if not texts:
            self.served.clear()
            self._statuses.clear()
        for info in infos:
            if isinstance(info, WholeTextsInfo):
                self.serve(info)
                status = ModelStatus(model=info.model, phase=Phase.READY, kind=kind_of(info).name)
                self._statuses[info.model] = status
        self.embedding_requests: list[WholeTextsRequest[Any]] = []
        self.open: dict[str, RequestStream[Any]] = {}

    def submit(self, request: Any) -> Any:
        if not isinstance(request, WholeTextsRequest):
            return super().submit(request)
        if self.submit_error is not None:
            raise self.submit_error
        self.embedding_requests.append(request)
        table: Any = SimpleNamespace(close=self._closed)
        stream = RequestStream(request, table)
        self.open[request.request_id] = stream
        asyncio.get_running_loop().create_task(self._embed(stream, request, self.failure))
        return stream

    def kill_worker(self) -> None:
        """End the worker process with its requests in it."""
        for stream in self.open.values():
            stream.put(EngineDead("the engine process ended unexpectedly"))
        self.open.clear()

    def _closed(self, stream: RequestStream[Any]) -> None:
        if self.open.pop(stream.request_id, None) is not None:
            self.aborted.append(stream.request_id)

    async def _embed(
        self,
        stream: RequestStream[Any],
        request: WholeTextsRequest[Any],
        failure: Failure | None,
    ) -> None:
        # Backwards: inputs may end in any order.
        for index in reversed(range(len(request.inputs))):
            await self._may_write.wait()
            if request.request_id not in self.open:
                return
            if failure is not None and index == 0:
                [event] = rejection(request, failure.value().error(), [index])
            else:
                event = replace(
                    _computed(request, index),
                    queue_time_s=0.25 if index == 0 else None,
                    finish_reason=FinishReason.STOP,
                )
            stream.put(event)
        self.open.pop(request.request_id, None)
        num_tokens = sum(map(len, request.inputs))
        before = self._stats.get(request.model)
        steps = 1 if before is None else before.num_steps + 1
        self.publish(
            request.model,
            operation_of(request).stats(
                num_steps=steps,
                num_tokens=num_tokens,
                step_inputs=len(request.inputs),
                step_tokens=num_tokens,
                step_time_s=0.5,
            ),
        )


def _computed(request: WholeTextsRequest[Any], index: int) -> EmbeddingEvent | PairEvent:
    ids, name = request.inputs[index], request.request_id
    if not isinstance(request, EmbeddingRequest):
        return PairEvent(request_id=name, index=index, score=vector(ids)[0])
    numbers = vector(ids, request.dimensions)
    packed = struct.pack(f"<{len(numbers)}f", *numbers)
    return EmbeddingEvent(request_id=name, index=index, embedding=packed)
